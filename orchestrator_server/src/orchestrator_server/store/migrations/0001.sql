-- What belongs to this database: its random id, shared with DATA_PATH.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The same table as TRANSITIONS in orchestrator_shared.status; a test compares them.
CREATE TABLE transitions (
    old TEXT NOT NULL,
    new TEXT NOT NULL,
    PRIMARY KEY (new, old)
) STRICT, WITHOUT ROWID;

INSERT INTO transitions (old, new) VALUES
    ('Queued', 'Processing'), ('Queued', 'Killed'),
    ('Processing', 'Queued'), ('Processing', 'Submitted'), ('Processing', 'Running'),
    ('Processing', 'Unknown'), ('Processing', 'Completed'), ('Processing', 'Failed'),
    ('Processing', 'Invalid'), ('Processing', 'Killed'),
    ('Submitted', 'Queued'), ('Submitted', 'Running'), ('Submitted', 'Unknown'),
    ('Submitted', 'Completed'), ('Submitted', 'Failed'), ('Submitted', 'Invalid'),
    ('Submitted', 'Killed'),
    ('Running', 'Queued'), ('Running', 'Unknown'), ('Running', 'Completed'),
    ('Running', 'Failed'), ('Running', 'Invalid'), ('Running', 'Killed'),
    ('Unknown', 'Queued'), ('Unknown', 'Processing'), ('Unknown', 'Submitted'),
    ('Unknown', 'Running'), ('Unknown', 'Completed'), ('Unknown', 'Failed'),
    ('Unknown', 'Invalid'), ('Unknown', 'Killed'),
    ('Completed', 'Cleaned'), ('Failed', 'Cleaned'), ('Invalid', 'Cleaned'),
    ('Killed', 'Cleaned');

-- One row per job, kept for good. Times are seconds since 1970, UTC.
CREATE TABLE jobs (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id          INTEGER NOT NULL CHECK (user_id >= 0),
    service          TEXT NOT NULL,
    ref              TEXT,
    status           TEXT NOT NULL,
    ended_as         TEXT,                        -- which end it was, once it is Cleaned too
    version          INTEGER NOT NULL DEFAULT 1,
    folder           TEXT NOT NULL,               -- below DATA_PATH/jobs; made where needed
    attempt          INTEGER NOT NULL DEFAULT 0,
    floor            INTEGER NOT NULL DEFAULT 0,  -- the next attempt has at least this number
    lost             INTEGER NOT NULL DEFAULT 0,  -- payloads that were lost
    spared           INTEGER NOT NULL DEFAULT 0,  -- payloads that were lost and do not count
    instance         TEXT,                        -- the client that the attempt belongs to
    start            TEXT,                        -- and which start of it took the attempt
    client           TEXT,                        -- the address it had then
    payload          INTEGER,                     -- its id there
    created_at       REAL NOT NULL,
    changed_at       REAL NOT NULL,
    started_at       REAL,
    ended_at         REAL,
    exit_code        INTEGER,
    fault            TEXT,
    reason           TEXT,
    cleaned_because  TEXT,                        -- beside the reason of its end, which stays
    stderr_tail      TEXT,
    wall_s           REAL,
    cpu_s            REAL,
    max_rss          INTEGER,
    input_bytes      INTEGER NOT NULL,
    kill_requested   INTEGER NOT NULL DEFAULT 0,
    delete_requested INTEGER NOT NULL DEFAULT 0,
    handover         INTEGER NOT NULL DEFAULT 0,  -- its client is gone: any other may have it
    idempotency_key  TEXT,
    input_digest     TEXT                         -- of service and files, beside a key only
) STRICT;

CREATE INDEX jobs_by_user ON jobs (user_id);
CREATE INDEX jobs_by_service ON jobs (service);
CREATE INDEX jobs_by_status ON jobs (status);
CREATE INDEX jobs_by_ref ON jobs (ref) WHERE ref IS NOT NULL;
CREATE INDEX jobs_by_instance ON jobs (instance, status)
    WHERE status IN ('Processing', 'Submitted', 'Running', 'Unknown');
CREATE INDEX jobs_queued ON jobs (service, user_id) WHERE status = 'Queued';
CREATE INDEX jobs_oldest ON jobs (service, id) WHERE status = 'Queued';
CREATE INDEX jobs_handover ON jobs (service, id) WHERE handover = 1;
CREATE INDEX jobs_by_folder ON jobs (folder);
CREATE INDEX jobs_ended ON jobs (service, ended_at)
    WHERE status IN ('Completed', 'Failed', 'Invalid', 'Killed');
CREATE INDEX jobs_to_delete ON jobs (delete_requested)
    WHERE delete_requested = 1 AND status IN ('Completed', 'Failed', 'Invalid', 'Killed');
CREATE UNIQUE INDEX jobs_by_key ON jobs (user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- The files of a job: name, size and digest of each as JSON. Few bytes stand here, in order;
-- more lie in the job's folder, and body is NULL.
CREATE TABLE inputs (
    job      INTEGER PRIMARY KEY REFERENCES jobs (id),
    manifest TEXT NOT NULL,
    body     BLOB
) STRICT;

-- The result of a job, likewise.
CREATE TABLE results (
    job    INTEGER PRIMARY KEY REFERENCES jobs (id),
    size   INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    file   TEXT,
    body   BLOB
) STRICT;

-- Every change of a state, in the order in which it was committed.
CREATE TABLE history (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    at         REAL NOT NULL,
    job        INTEGER NOT NULL REFERENCES jobs (id),
    user_id    INTEGER NOT NULL,
    service    TEXT NOT NULL,
    old        TEXT,
    new        TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    client     TEXT,
    fault      TEXT,
    reason     TEXT
) STRICT;

CREATE INDEX history_by_job ON history (job);

-- How many jobs each user has Queued and active in each service, kept by the triggers below.
-- The next user is the first in queues_next: a decision costs the same for any length of queue.
CREATE TABLE queues (
    service TEXT NOT NULL,
    user_id INTEGER NOT NULL,
    queued  INTEGER NOT NULL DEFAULT 0 CHECK (queued >= 0),
    active  INTEGER NOT NULL DEFAULT 0 CHECK (active >= 0),
    served  INTEGER NOT NULL DEFAULT 0,  -- the number in history when it was served last
    PRIMARY KEY (service, user_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX queues_next ON queues (service, active, served) WHERE queued > 0;

-- How many jobs of each service are in each state, kept likewise.
CREATE TABLE states (
    service TEXT NOT NULL,
    status  TEXT NOT NULL,
    jobs    INTEGER NOT NULL CHECK (jobs >= 0),
    PRIMARY KEY (service, status)
) STRICT, WITHOUT ROWID;

-- Every client that was ever met, by its instance, as it was then.
CREATE TABLE clients (
    instance  TEXT PRIMARY KEY,
    address   TEXT NOT NULL,
    service   TEXT,                       -- the only one that it runs jobs of
    version   TEXT NOT NULL,
    slots     INTEGER NOT NULL,
    last_seen REAL NOT NULL,
    silence_s REAL NOT NULL DEFAULT 0,    -- while this server was up and trying
    gone      INTEGER NOT NULL DEFAULT 0, -- somebody said so
    draining  INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- How many active jobs each client has of each service.
CREATE TABLE loads (
    instance TEXT NOT NULL,
    service  TEXT NOT NULL,
    active   INTEGER NOT NULL DEFAULT 0 CHECK (active >= 0),
    PRIMARY KEY (instance, service)
) STRICT, WITHOUT ROWID;

CREATE INDEX loads_by_service ON loads (service, instance, active) WHERE active > 0;

CREATE TRIGGER jobs_begin AFTER INSERT ON jobs
BEGIN
    SELECT RAISE(ABORT, 'a job begins as Queued') WHERE NEW.status <> 'Queued';
    INSERT INTO history (at, job, user_id, service, old, new, attempt, client, fault, reason)
        VALUES (NEW.changed_at, NEW.id, NEW.user_id, NEW.service, NULL, NEW.status,
                NEW.attempt, NULL, NULL, NULL);
    INSERT INTO queues (service, user_id, queued) VALUES (NEW.service, NEW.user_id, 1)
        ON CONFLICT (service, user_id) DO UPDATE SET queued = queued + 1;
    INSERT INTO states (service, status, jobs) VALUES (NEW.service, NEW.status, 1)
        ON CONFLICT (service, status) DO UPDATE SET jobs = jobs + 1;
END;

CREATE TRIGGER jobs_change BEFORE UPDATE OF status ON jobs
BEGIN
    SELECT RAISE(ABORT, 'no such transition')
        WHERE NOT EXISTS (SELECT 1 FROM transitions WHERE old = OLD.status AND new = NEW.status);
    SELECT RAISE(ABORT, 'a change raises the version') WHERE NEW.version <> OLD.version + 1;
END;

CREATE TRIGGER jobs_changed AFTER UPDATE OF status ON jobs
BEGIN
    INSERT INTO history (at, job, user_id, service, old, new, attempt, client, fault, reason)
        VALUES (NEW.changed_at, NEW.id, NEW.user_id, NEW.service, OLD.status, NEW.status,
                NEW.attempt, coalesce(NEW.client, OLD.client), NEW.fault,
                CASE NEW.status WHEN 'Cleaned' THEN NEW.cleaned_because ELSE NEW.reason END);
    UPDATE queues SET
        queued = queued + (NEW.status = 'Queued') - (OLD.status = 'Queued'),
        active = active
            + (NEW.status IN ('Processing', 'Submitted', 'Running', 'Unknown'))
            - (OLD.status IN ('Processing', 'Submitted', 'Running', 'Unknown')),
        served = CASE NEW.status WHEN 'Processing' THEN last_insert_rowid() ELSE served END
        WHERE service = NEW.service AND user_id = NEW.user_id;
    UPDATE states SET jobs = jobs - 1 WHERE service = OLD.service AND status = OLD.status;
    INSERT INTO states (service, status, jobs) VALUES (NEW.service, NEW.status, 1)
        ON CONFLICT (service, status) DO UPDATE SET jobs = jobs + 1;
END;

CREATE TRIGGER jobs_leave_client AFTER UPDATE OF status ON jobs
    WHEN OLD.status IN ('Processing', 'Submitted', 'Running', 'Unknown')
     AND (NEW.status NOT IN ('Processing', 'Submitted', 'Running', 'Unknown')
          OR NEW.instance IS NOT OLD.instance)
BEGIN
    UPDATE loads SET active = active - 1
        WHERE instance = OLD.instance AND service = OLD.service;
END;

CREATE TRIGGER jobs_come_to_client AFTER UPDATE OF status ON jobs
    WHEN NEW.status IN ('Processing', 'Submitted', 'Running', 'Unknown')
     AND (OLD.status NOT IN ('Processing', 'Submitted', 'Running', 'Unknown')
          OR NEW.instance IS NOT OLD.instance)
BEGIN
    INSERT INTO loads (instance, service, active) VALUES (NEW.instance, NEW.service, 1)
        ON CONFLICT (instance, service) DO UPDATE SET active = active + 1;
END;
