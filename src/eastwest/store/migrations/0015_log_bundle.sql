-- Entries at rest are compressed (zstd). A row that came as a large append is so at once (packed = 1);
-- small ones are put together when their 256 entries are published, in log_bundle.
ALTER TABLE log_segment ADD COLUMN packed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX log_segment_plain ON log_segment (first) WHERE packed = 0;

--   hashes: 256 leaf hashes; data: the entry bundle, compressed; NULL once it was pruned, as an
--   entry log.pruned tells.
CREATE TABLE log_bundle (
    n      INTEGER PRIMARY KEY,
    hashes BLOB NOT NULL,
    data   BLOB
) STRICT;
