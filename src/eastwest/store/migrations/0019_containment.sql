-- Who was cut off, by whom and why; end_generation 0 while it holds. Generations are one sequence over starts and ends.
CREATE TABLE containments (
    id             TEXT PRIMARY KEY,
    spiffe_ids     TEXT NOT NULL, -- JSON array, sorted
    selector       TEXT NOT NULL,
    reason         TEXT NOT NULL,
    started_by     TEXT NOT NULL,
    started_at     INTEGER NOT NULL,
    generation     INTEGER NOT NULL UNIQUE,
    evidence       TEXT NOT NULL,
    ended_by       TEXT NOT NULL,
    ended_at       INTEGER NOT NULL,
    end_reason     TEXT NOT NULL,
    end_generation INTEGER NOT NULL
) STRICT;
