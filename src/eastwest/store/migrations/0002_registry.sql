-- Registration entries, attested nodes and join tokens. Times are Unix seconds; lists are JSON arrays of
-- texts; selectors are written type:value, sorted, so that equal sets are equal texts.

-- One row: counts every batch of changes. A writer that holds an older one has missed something.
CREATE TABLE registry_state (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL
) STRICT;
INSERT INTO registry_state VALUES (1, 0);

CREATE TABLE entries (
    id                         TEXT PRIMARY KEY,
    spiffe_id                  TEXT NOT NULL,
    parent_id                  TEXT NOT NULL,
    selectors                  TEXT NOT NULL,
    x509_svid_ttl              INTEGER NOT NULL,
    jwt_svid_ttl               INTEGER NOT NULL,
    federates_with             TEXT NOT NULL,
    admin                      INTEGER NOT NULL,
    downstream                 INTEGER NOT NULL,
    expires_at                 INTEGER NOT NULL,
    dns_names                  TEXT NOT NULL,
    revision                   INTEGER NOT NULL,
    store_svid                 INTEGER NOT NULL,
    hint                       TEXT NOT NULL,
    created_at                 INTEGER NOT NULL,
    disable_x509_svid_prefetch INTEGER NOT NULL,
    jwt_svid_include_jti       INTEGER NOT NULL,
    profile                    TEXT NOT NULL,
    owner                      TEXT NOT NULL,
    origin                     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
-- No two similar entries, whoever writes.
CREATE UNIQUE INDEX entries_key ON entries (spiffe_id, parent_id, selectors);

CREATE TABLE nodes (
    spiffe_id        TEXT PRIMARY KEY,
    attestation_type TEXT NOT NULL,
    serial_current   TEXT NOT NULL,
    not_after        INTEGER NOT NULL,
    serial_new       TEXT NOT NULL,
    new_not_after    INTEGER NOT NULL,
    banned           INTEGER NOT NULL,
    can_reattest     INTEGER NOT NULL,
    selectors        TEXT NOT NULL,
    agent_version    TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A token's text is nowhere: only its SHA-256. Using a token removes its row.
CREATE TABLE join_tokens (
    digest     BLOB PRIMARY KEY,
    expires_at INTEGER NOT NULL,
    node_group TEXT NOT NULL,
    alias      TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX join_tokens_end ON join_tokens (expires_at);
