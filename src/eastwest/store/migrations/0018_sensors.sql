-- When enforcement points were connected and recording. Times are milliseconds since 1970; ended NULL: still is.
CREATE TABLE sensor_spans (
  id INTEGER PRIMARY KEY,
  agent TEXT NOT NULL,
  node TEXT NOT NULL,
  spiffe_id TEXT NOT NULL,
  started INTEGER NOT NULL,
  ended INTEGER,
  why TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX sensor_spans_workload ON sensor_spans (spiffe_id, started);
CREATE INDEX sensor_spans_ended ON sensor_spans (ended);
-- When the server last looked: a server that was killed knows no better end of what was open.
CREATE TABLE sensor_looked (only INTEGER PRIMARY KEY CHECK (only = 1), at INTEGER NOT NULL) STRICT;
