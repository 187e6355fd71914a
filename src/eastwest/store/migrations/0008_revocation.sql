-- Certificates of revocable profiles, from before their release until their end: what can be revoked, and what was.
-- Times are Unix seconds; serial and issuer (the issuing key's identifier) are lower-case hex.
CREATE TABLE certificates (
  issuer      TEXT NOT NULL,
  serial      TEXT NOT NULL,
  spiffe_id   TEXT NOT NULL,
  profile     TEXT NOT NULL,
  shard       TEXT NOT NULL,
  not_before  INTEGER NOT NULL,
  not_after   INTEGER NOT NULL,
  node        TEXT NOT NULL,
  entry_id    TEXT NOT NULL,
  certificate BLOB NOT NULL,
  revoked_at  INTEGER,
  reason      TEXT,
  revision    INTEGER,
  PRIMARY KEY (issuer, serial)
) STRICT;
CREATE INDEX certificates_serial ON certificates (serial);
CREATE INDEX certificates_spiffe_id ON certificates (spiffe_id, not_after);
CREATE INDEX certificates_not_after ON certificates (not_after);
CREATE INDEX certificates_shard ON certificates (issuer, shard, not_after);
CREATE INDEX certificates_revoked ON certificates (issuer, shard, not_after) WHERE revoked_at IS NOT NULL;

-- Revocations are numbered in their order, so that it can be told which ones a CRL holds.
CREATE INDEX certificates_revision ON certificates (revision) WHERE revision IS NOT NULL;

-- The last CRL of each shard: its number never goes back, whatever happens to the process.
CREATE TABLE crls (
  issuer      TEXT NOT NULL,
  shard       TEXT NOT NULL,
  number      INTEGER NOT NULL,
  next_update INTEGER NOT NULL,
  covers      INTEGER NOT NULL,
  crl         BLOB NOT NULL,
  PRIMARY KEY (issuer, shard)
) STRICT;
