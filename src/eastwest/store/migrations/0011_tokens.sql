-- Transaction tokens. Times are Unix seconds. No token is stored, only the identifiers of used ones until they end.
CREATE TABLE token_ring (
  id    INTEGER PRIMARY KEY CHECK (id = 1),
  state BLOB NOT NULL  -- JSON of eastwest.pki.token_keys.Ring: public keys and names, no private key
) STRICT;

CREATE TABLE approvals (
  id              TEXT PRIMARY KEY,
  caller          TEXT NOT NULL,
  operation       TEXT NOT NULL,
  service         TEXT NOT NULL,
  domain          TEXT NOT NULL,
  tenant          TEXT NOT NULL,
  reason          TEXT NOT NULL,
  requested_by    TEXT NOT NULL,
  requested_at    INTEGER NOT NULL,
  ends            INTEGER NOT NULL,
  state           TEXT NOT NULL,
  decided_by      TEXT NOT NULL,
  decided_at      INTEGER NOT NULL,
  decision_reason TEXT NOT NULL,
  approver        TEXT NOT NULL,
  spent_at        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX approvals_by_caller ON approvals (caller, state, ends);
CREATE INDEX approvals_by_time ON approvals (requested_at);

CREATE TABLE used_tokens (
  service  TEXT NOT NULL,  -- whose agents say so: none uses up what is another service's
  token_id TEXT NOT NULL,
  ends     INTEGER NOT NULL,
  PRIMARY KEY (service, token_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX used_tokens_by_end ON used_tokens (ends);
