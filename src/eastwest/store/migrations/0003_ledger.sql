-- Decisions of enforcement points as agents reported them, one row each.
CREATE TABLE decisions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  agent TEXT NOT NULL,
  time TEXT NOT NULL,
  caller TEXT NOT NULL,
  service TEXT NOT NULL,
  verdict TEXT NOT NULL,
  code TEXT NOT NULL,
  body BLOB NOT NULL
) STRICT;
CREATE INDEX decisions_service ON decisions (service, id);
CREATE INDEX decisions_caller ON decisions (caller, id);

-- What agents said that they could not keep.
CREATE TABLE decisions_lost (
  agent TEXT PRIMARY KEY,
  lost INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
