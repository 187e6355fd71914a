-- Changes of the estate that wait for somebody's word. Times are Unix seconds.
CREATE TABLE changes (
  id           TEXT PRIMARY KEY,
  requested_at INTEGER NOT NULL,
  ends         INTEGER NOT NULL,
  state        TEXT NOT NULL,
  version      TEXT NOT NULL,
  change       BLOB NOT NULL,  -- JSON of eastwest.registry.changes.Change
  files        BLOB NOT NULL   -- the estate that it would put in force, packed as estates are
) STRICT, WITHOUT ROWID;
CREATE INDEX changes_by_time ON changes (requested_at);
CREATE INDEX changes_by_version ON changes (version, state);
