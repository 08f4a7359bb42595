-- Every statement of the store, in named blocks, in the order of a job's way.
-- A block that reads jobs by a scan must say what bounds it ("bounded:").

-- name: meta
SELECT value FROM meta WHERE key = :key;

-- name: set_meta
INSERT INTO meta (key, value) VALUES (:key, :value)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: tables
SELECT name FROM sqlite_master WHERE type = 'table';

-- === 1 upload

-- name: insert_job
INSERT INTO jobs (user_id, service, ref, status, folder, created_at, changed_at, input_bytes,
                  idempotency_key, input_digest)
    VALUES (:user_id, :service, :ref, 'Queued', :folder, :now, :now, :input_bytes,
            :idempotency_key, :input_digest);

-- name: insert_input
INSERT INTO inputs (job, manifest, body) VALUES (:job, :manifest, :body);

-- name: job_by_key
SELECT * FROM jobs WHERE user_id = :user_id AND idempotency_key = :idempotency_key;

-- === 2 queue

-- name: services_waiting
-- Which services have jobs that may go, now or later.
-- bounded: the index has only jobs that are to be handed over.
SELECT service FROM queues WHERE queued > 0
    UNION SELECT service FROM jobs WHERE handover = 1;

-- name: client_loads
-- Active jobs of every client, over all services.
SELECT instance, sum(active) AS active FROM loads WHERE active > 0 GROUP BY instance;

-- name: service_loads
SELECT instance, active FROM loads WHERE service = :service AND active > 0;

-- name: loads
-- Active jobs of every client, service by service.
SELECT instance, service, active FROM loads WHERE active > 0;

-- name: next_job
-- The oldest job of the user with the fewest active jobs, among equals of the one served longest
-- ago. By the index of the user: that of all Queued jobs would be walked up to the user's first.
SELECT id FROM jobs INDEXED BY jobs_queued
    WHERE service = :service AND status = 'Queued' AND user_id = (
        SELECT user_id FROM queues
            WHERE service = :service AND queued > 0 AND active < :runs_per_user
            ORDER BY active, served LIMIT 1)
    ORDER BY id LIMIT 1;

-- name: next_handover
-- The oldest job of a service whose client is gone.
SELECT id, client FROM jobs WHERE service = :service AND handover = 1 ORDER BY id LIMIT 1;

-- name: user_queue
SELECT queued, active FROM queues WHERE service = :service AND user_id = :user_id;

-- name: users_queued
SELECT count(*) AS users FROM queues WHERE service = :service AND queued > 0;

-- name: jobs_ahead
SELECT count(*) AS ahead FROM jobs INDEXED BY jobs_queued
    WHERE service = :service AND user_id = :user_id AND status = 'Queued' AND id < :id;

-- === 3 send

-- name: process
UPDATE jobs SET status = 'Processing', version = version + 1,
        attempt = max(attempt + 1, floor), instance = :instance, start = :start, client = :client, payload = NULL, started_at = NULL,
        handover = 0, reason = :reason, fault = NULL, changed_at = :now
    WHERE id = :id AND kill_requested = 0
      AND status IN (SELECT old FROM transitions WHERE new = 'Processing')
    RETURNING *;

-- name: input
SELECT manifest, body FROM inputs WHERE job = :job;

-- name: requeue
-- Back to Queued, or, where somebody asked for its end, to that end.
UPDATE jobs SET status = CASE kill_requested WHEN 1 THEN 'Killed' ELSE 'Queued' END,
        ended_as = CASE kill_requested WHEN 1 THEN 'Killed' END,
        ended_at = CASE kill_requested WHEN 1 THEN :now END,
        fault = CASE kill_requested WHEN 1 THEN 'operator' END,
        version = version + 1, lost = lost + :lost, spared = spared + :spared,
        attempt = max(attempt, :held), instance = NULL, start = NULL, client = NULL,
        payload = NULL, started_at = NULL, handover = 0, reason = :reason, changed_at = :now
    WHERE id = :id AND attempt = :attempt AND (payload IS NULL OR NOT :unsent)
      AND status IN (SELECT old FROM transitions WHERE new = 'Queued')
    RETURNING *;

-- name: processing_at
-- Jobs whose submit to this client has no outcome yet.
SELECT * FROM jobs WHERE instance = :instance
    AND (status = 'Processing' OR status = 'Unknown' AND payload IS NULL);

-- name: adopt
-- A client has a later attempt of a Queued job than this server knows of: it was restored.
UPDATE jobs SET status = 'Processing', version = version + 1, attempt = :attempt,
        instance = :instance, start = :start, client = :client, reason = :reason, changed_at = :now
    WHERE id = :id AND attempt < :attempt
      AND status IN (SELECT old FROM transitions WHERE new = 'Processing')
    RETURNING *;

-- === 4 run

-- name: observe
UPDATE jobs SET status = :status, version = version + 1, payload = :payload,
        started_at = CASE :status WHEN 'Running' THEN coalesce(started_at, :now) END,
        handover = 0, reason = NULL, changed_at = :now
    WHERE id = :id AND attempt = :attempt AND instance = :instance
      AND status IN (SELECT old FROM transitions WHERE new = :status)
    RETURNING *;

-- name: lose_sight
-- What the client has, or may have, can no longer be followed.
UPDATE jobs SET status = 'Unknown', version = version + 1, reason = :reason, changed_at = :now
    WHERE instance = :instance AND status IN ('Processing', 'Submitted', 'Running')
    RETURNING id;

-- name: hand_over
-- Its client is gone: whichever other has a free slot may have the job.
UPDATE jobs SET handover = 1 WHERE id = :id AND attempt = :attempt
    AND status = 'Unknown' AND kill_requested = 0
    RETURNING *;

-- name: keep_from_handover
-- The client is back before they were handed over.
UPDATE jobs SET handover = 0 WHERE instance = :instance AND handover = 1
    AND status IN ('Processing', 'Submitted', 'Running', 'Unknown');

-- name: defer
-- The result is there but cannot be fetched yet.
UPDATE jobs SET status = 'Unknown', version = version + 1, payload = :payload,
        handover = 0, reason = :reason, changed_at = :now
    WHERE id = :id AND attempt = :attempt AND instance = :instance
      AND status IN (SELECT old FROM transitions WHERE new = 'Unknown')
    RETURNING *;

-- name: held_by
-- Jobs that this client holds, as far as the server knows.
SELECT * FROM jobs WHERE instance = :instance
    AND status IN ('Submitted', 'Running', 'Unknown');

-- name: bound_instances
SELECT DISTINCT instance FROM loads WHERE active > 0;

-- name: bound_addresses
-- Where the clients that have jobs were met.
-- bounded: the index has active jobs only.
SELECT DISTINCT client FROM jobs INDEXED BY jobs_by_instance
    WHERE status IN ('Processing', 'Submitted', 'Running', 'Unknown');

-- name: active_at
-- All jobs that this client has, or may have.
SELECT * FROM jobs WHERE instance = :instance
    AND status IN ('Processing', 'Submitted', 'Running', 'Unknown');

-- === clients

-- name: clients
SELECT * FROM clients;

-- name: meet
INSERT INTO clients (instance, address, service, version, slots, last_seen)
    VALUES (:instance, :address, :service, :version, :slots, :last_seen)
    ON CONFLICT (instance) DO UPDATE SET address = :address, service = :service,
        version = :version, slots = :slots, last_seen = :last_seen, silence_s = 0, gone = 0;

-- name: keep_silence
UPDATE clients SET silence_s = :silence_s, last_seen = :last_seen WHERE instance = :instance;

-- name: say_gone
UPDATE clients SET gone = 1 WHERE instance = :instance;

-- name: original_clients
SELECT instance, highest_id, resets FROM original_clients;

-- name: keep_original_ids
INSERT INTO original_clients (instance, highest_id, resets) VALUES (:instance, :highest_id, :resets)
    ON CONFLICT (instance) DO UPDATE SET highest_id = :highest_id, resets = :resets;

-- name: drain
UPDATE clients SET draining = :draining WHERE instance = :instance;

-- name: states
SELECT service, status, jobs FROM states WHERE jobs > 0;

-- name: oldest_queued
SELECT created_at FROM jobs WHERE service = :service AND status = 'Queued' ORDER BY id LIMIT 1;

-- === 5 get

-- name: finish
UPDATE jobs SET status = :status, ended_as = :status, version = version + 1,
        payload = coalesce(:payload, payload),
        started_at = coalesce(started_at, :now - :wall_s), ended_at = :now,
        exit_code = :exit_code, fault = :fault, reason = :reason, stderr_tail = :stderr_tail,
        wall_s = :wall_s, cpu_s = :cpu_s, max_rss = :max_rss, lost = lost + :lost,
        handover = 0, changed_at = :now
    WHERE id = :id AND attempt = :attempt AND (jobs.payload IS NULL OR NOT :unsent)
      AND status IN (SELECT old FROM transitions WHERE new = :status)
    RETURNING *;

-- name: insert_result
INSERT INTO results (job, size, sha256, file, body) VALUES (:job, :size, :sha256, :file, :body);

-- === 6 download

-- name: job
SELECT jobs.*, results.size AS result_bytes FROM jobs
    LEFT JOIN results ON results.job = jobs.id WHERE id = :id;

-- name: result
SELECT size, sha256, file, body FROM results WHERE job = :job;

-- name: job_history
SELECT seq, at, new AS status, attempt, client, reason FROM history
    WHERE job = :job ORDER BY seq;

-- name: list_jobs
-- The optional filters are put in the place of the last condition, from LIST_FILTERS.
-- bounded: newest first, `limit` rows of what the filters leave.
SELECT jobs.*, results.size AS result_bytes FROM jobs
    LEFT JOIN results ON results.job = jobs.id
    WHERE id < :after AND true ORDER BY id DESC LIMIT :limit;

-- name: events
-- One stretch of history; the filters are looked at row by row, so that no index slows writing.
SELECT history.*, jobs.ref FROM history JOIN jobs ON jobs.id = history.job
    WHERE seq > :after AND seq <= :until
      AND (:user_id IS NULL OR history.user_id = :user_id)
      AND (:service IS NULL OR history.service = :service)
    ORDER BY seq LIMIT :limit;

-- name: next_event
-- Numbers have gaps: a restore goes on far above them.
SELECT min(seq) AS seq FROM history WHERE seq > :after;

-- name: last_event
SELECT coalesce(max(seq), 0) AS seq FROM history;

-- name: changes_since
-- What the transaction under way has changed, for the log and for those who wait.
SELECT history.*, jobs.delete_requested FROM history JOIN jobs ON jobs.id = history.job
    WHERE seq > :after ORDER BY seq;

-- === terminate and delete

-- name: request_kill
UPDATE jobs SET kill_requested = 1, handover = 0 WHERE id = :id
    AND status IN ('Processing', 'Submitted', 'Running', 'Unknown')
    RETURNING *;

-- name: kill_queued
UPDATE jobs SET status = 'Killed', ended_as = 'Killed', version = version + 1,
        kill_requested = 1, ended_at = :now, fault = 'operator', reason = :reason,
        changed_at = :now
    WHERE id = :id AND status = 'Queued'
    RETURNING *;

-- name: request_delete
UPDATE jobs SET delete_requested = 1 WHERE id = :id RETURNING *;

-- === 7 clean

-- name: expired
SELECT id FROM jobs WHERE service = :service AND ended_at < :before
    AND status IN ('Completed', 'Failed', 'Invalid', 'Killed') ORDER BY ended_at LIMIT :limit;

-- name: known_services
-- Of every service that ever had a job; the table has one row per service and user.
SELECT DISTINCT service FROM queues;

-- name: to_delete
SELECT id FROM jobs WHERE delete_requested = 1
    AND status IN ('Completed', 'Failed', 'Invalid', 'Killed') LIMIT :limit;

-- name: clean
UPDATE jobs SET status = 'Cleaned', version = version + 1, changed_at = :now,
        cleaned_because = :reason
    WHERE id = :id AND status IN (SELECT old FROM transitions WHERE new = 'Cleaned')
    RETURNING *;

-- name: delete_input
DELETE FROM inputs WHERE job = :job;

-- name: delete_result
DELETE FROM results WHERE job = :job;

-- name: job_by_folder
SELECT id, status FROM jobs WHERE folder = :folder;

-- === operating

-- name: files_of_jobs
-- Every file that a record names, below the folder of jobs, with the bytes that it has.
SELECT jobs.id, jobs.folder, 'input/' || json_extract(file.value, '$.name') AS file,
       json_extract(file.value, '$.size') AS size
    FROM inputs JOIN jobs ON jobs.id = inputs.job, json_each(inputs.manifest) AS file
    WHERE inputs.body IS NULL
UNION ALL
SELECT jobs.id, jobs.folder, results.file, results.size
    FROM results JOIN jobs ON jobs.id = results.job
    WHERE results.body IS NULL;

-- name: begin_numbers
-- SQLite keeps the last number only of tables that have had a row.
INSERT INTO sqlite_sequence (name, seq)
    SELECT value, 0 FROM json_each('["jobs", "history"]')
    WHERE value NOT IN (SELECT name FROM sqlite_sequence);

-- name: skip_numbers
UPDATE sqlite_sequence SET seq = seq + :ahead WHERE name IN ('jobs', 'history');

-- name: raise_attempts
-- Attempts of these jobs may have been given since the backup was made.
UPDATE jobs SET floor = attempt + :ahead
    WHERE status IN ('Queued', 'Processing', 'Submitted', 'Running', 'Unknown');

-- name: count_jobs
-- bounded: for a backup, which looks at all of them.
SELECT count(*) AS jobs FROM jobs;

-- === taking over from the original

-- name: original_jobs
-- In the database of an original server, whose table has other columns and the same name.
-- bounded: an import looks at all of them.
SELECT * FROM jobs ORDER BY id;

-- name: last_original_id
-- Jobs of higher ids may have been removed there.
SELECT seq FROM sqlite_sequence WHERE name = 'jobs';

-- name: where_taken_from
-- Whether there is a job of this id, and if it was taken over, its place at the original.
SELECT jobs.id, taken_over.loc FROM jobs LEFT JOIN taken_over ON taken_over.job = jobs.id
    WHERE jobs.id = :id;

-- name: take_over
-- A job begins as Queued; what has become of it at the original follows as changes.
INSERT INTO jobs (id, user_id, service, status, folder, created_at, changed_at, input_bytes, reason)
    VALUES (:id, :user_id, :service, 'Queued', :folder, :created_at, :created_at, :input_bytes,
            :reason);

-- name: insert_taken_over
INSERT INTO taken_over (job, loc) VALUES (:job, :loc);

-- name: end_taken_over
-- It ended at the original: no client has a copy that could be asked for.
UPDATE jobs SET status = :status, ended_as = :status, version = version + 1, instance = NULL,
        payload = :payload, ended_at = :now, fault = :fault, reason = :reason, changed_at = :now
    WHERE id = :id AND status = 'Processing'
    RETURNING *;

-- name: expect_client
-- A client that was not met yet, and has jobs.
INSERT INTO clients (instance, address, version, slots, last_seen)
    VALUES (:instance, :address, 'original', 0, :now)
    ON CONFLICT (instance) DO NOTHING;

-- name: expect_original_ids
-- Where they have begun again since, they are not what they were at the original.
INSERT INTO original_clients (instance, highest_id) VALUES (:instance, :highest_id)
    ON CONFLICT (instance) DO UPDATE SET highest_id = max(highest_id, excluded.highest_id)
    WHERE resets = 0;

-- name: skip_original_ids
UPDATE sqlite_sequence SET seq = max(seq, :highest_id) WHERE name = 'jobs';
