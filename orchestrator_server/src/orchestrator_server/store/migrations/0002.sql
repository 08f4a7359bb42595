-- The ids that an original client gives to payloads: the highest so far, and how often they began
-- again below it. It has no id of its own that would tell.
CREATE TABLE original_clients (
    instance   TEXT PRIMARY KEY,
    highest_id INTEGER NOT NULL,
    resets     INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- The jobs that were taken over from an original server, and their place there: none is taken twice.
CREATE TABLE taken_over (
    job INTEGER PRIMARY KEY REFERENCES jobs (id),
    loc TEXT NOT NULL
) STRICT;
