-- What this database belongs to (trust_domain); small facts of which there is exactly one.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The transparency log's entries, many to a row. A row never crosses a multiple of 256 (a tile's
-- width), so an entry bundle is the concatenation of whole rows.
--   hashes: RFC 6962 leaf hashes, 32 bytes each; data: per entry a big-endian uint16 length and its bytes.
CREATE TABLE log_segment (
    first  INTEGER PRIMARY KEY,
    hashes BLOB NOT NULL,
    data   BLOB NOT NULL
) STRICT;

-- The hashes of tile levels 1 and up: n is the index in the level; each is the root of a full tile of
-- the level below. Start-up recomputes the tree from these and the last few entries.
CREATE TABLE log_node (
    level INTEGER NOT NULL,
    n     INTEGER NOT NULL,
    hash  BLOB NOT NULL,
    PRIMARY KEY (level, n)
) STRICT, WITHOUT ROWID;

-- One row: the size, and the roots of the perfect subtrees of that size, largest first.
CREATE TABLE log_head (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    size INTEGER NOT NULL,
    edge BLOB NOT NULL
) STRICT;
INSERT INTO log_head VALUES (1, 0, x'');

-- One row: the tree head that was last allowed to be signed. Moved by compare-and-swap only.
CREATE TABLE log_published (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    size INTEGER NOT NULL,
    root BLOB NOT NULL
) STRICT;
-- The root of the empty tree is the SHA-256 of nothing.
INSERT INTO log_published
    VALUES (1, 0, x'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
