-- Every statement of the index of payloads, in named blocks.

-- name: schema
CREATE TABLE payloads (
    id            INTEGER PRIMARY KEY,
    server        TEXT NOT NULL,               -- '' where it does not say who it is
    job           INTEGER,
    attempt       INTEGER,
    service       TEXT NOT NULL,
    limit_s       REAL,
    status        TEXT NOT NULL,
    pid           INTEGER NOT NULL DEFAULT 0,
    killed        INTEGER NOT NULL DEFAULT 0,
    exit_code     INTEGER,
    fault         TEXT,
    reason        TEXT,
    lost          INTEGER NOT NULL DEFAULT 0,
    handed_back   INTEGER NOT NULL DEFAULT 0,
    wall_s        REAL,
    cpu_s         REAL,
    max_rss       INTEGER,
    stderr_tail   TEXT,
    result_size   INTEGER,
    result_sha256 TEXT,
    ended_at      REAL                         -- by clocks.py; once Cleaned, that of its removal
) STRICT;
CREATE UNIQUE INDEX payloads_by_attempt ON payloads (server, job, attempt)
    WHERE job IS NOT NULL;
CREATE INDEX payloads_by_status ON payloads (status, id);
CREATE INDEX payloads_cleaned ON payloads (ended_at) WHERE status = 'Cleaned';

-- name: insert
INSERT INTO payloads (id, server, job, attempt, service, limit_s, status)
    VALUES (:id, :server, :job, :attempt, :service, :limit_s, 'Prepared');

-- name: insert_cleaned
INSERT OR IGNORE INTO payloads (id, server, job, attempt, service, status, ended_at)
    VALUES (:id, :server, :job, :attempt, :service, 'Cleaned', :at);

-- name: by_id
SELECT * FROM payloads WHERE id = :id;

-- name: by_attempt
SELECT * FROM payloads WHERE server = :server AND job = :job AND attempt = :attempt;

-- name: attempts
SELECT * FROM payloads WHERE server = :server AND job = :job ORDER BY attempt;

-- name: of_server
-- All that a server has not acknowledged yet, oldest first.
SELECT * FROM payloads WHERE server = :server AND job IS NOT NULL AND status <> 'Cleaned'
    ORDER BY id;

-- name: with_status
SELECT * FROM payloads WHERE status = :status ORDER BY id;

-- name: oldest_prepared
-- One that is being killed is never started.
SELECT * FROM payloads WHERE status = 'Prepared' AND killed = 0 ORDER BY id LIMIT 1;

-- name: unacknowledged
SELECT count(*) AS payloads FROM payloads WHERE server = :server AND job IS NOT NULL
    AND status IN ('Completed', 'Failed', 'Invalid', 'Killed');

-- name: ended_before
SELECT * FROM payloads WHERE status IN ('Completed', 'Failed', 'Invalid', 'Killed')
    AND ended_at < CASE server WHEN '' THEN :before ELSE :unclaimed_before END
    ORDER BY id;

-- name: running
UPDATE payloads SET status = 'Running', pid = :pid WHERE id = :id AND status = 'Prepared';

-- name: set_pid
UPDATE payloads SET pid = :pid WHERE id = :id AND status = 'Running';

-- name: set_killed
UPDATE payloads SET killed = 1 WHERE id = :id AND status IN ('Prepared', 'Running');

-- name: ended
UPDATE payloads SET status = :status, pid = 0, killed = :killed,
        exit_code = :exit_code, fault = :fault, reason = :reason, lost = :lost,
        handed_back = :handed_back, wall_s = :wall_s, cpu_s = :cpu_s, max_rss = :max_rss, stderr_tail = :stderr_tail,
        result_size = :result_size, result_sha256 = :result_sha256, ended_at = :ended_at
    WHERE id = :id AND status IN ('Prepared', 'Running');

-- name: forget
DELETE FROM payloads WHERE status = 'Cleaned' AND ended_at < :before;

-- name: cleaned
UPDATE payloads SET status = 'Cleaned', ended_at = :ended_at
    WHERE id = :id AND status IN ('Completed', 'Failed', 'Invalid', 'Killed');
