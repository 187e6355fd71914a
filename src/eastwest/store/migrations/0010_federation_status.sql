-- How each bundle endpoint fares, so that a restart does not make an old failure look new. Times are Unix seconds.
CREATE TABLE federation_statuses (
  trust_domain  TEXT PRIMARY KEY,
  problem       TEXT NOT NULL,
  failures      INTEGER NOT NULL,
  tried_at      REAL,
  succeeded_at  REAL,
  failing_since REAL
) STRICT;
