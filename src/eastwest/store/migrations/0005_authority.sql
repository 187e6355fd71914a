-- CA state and rotation. One row: the state as JSON (certificates in it, private keys in the key store), replaced only
-- by whoever has read the present revision.
CREATE TABLE authority (
  id       INTEGER PRIMARY KEY CHECK (id = 1),
  revision INTEGER NOT NULL,
  state    BLOB NOT NULL
) STRICT;

-- The newest bundle that each node has confirmed for itself and its sidecars.
CREATE TABLE confirmations (
  agent    TEXT PRIMARY KEY,
  sequence INTEGER NOT NULL,
  issuer   TEXT NOT NULL,
  tainted  INTEGER NOT NULL,
  stock    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
