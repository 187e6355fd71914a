-- Every applied version of the estate, whole; the newest row is in force.
CREATE TABLE estates (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  version TEXT NOT NULL,
  applied_at TEXT NOT NULL,
  applied_by TEXT NOT NULL,
  files BLOB NOT NULL
) STRICT;
