-- When a node last showed evidence, and when it last called (Unix seconds; 0: not known, or not yet).
ALTER TABLE nodes ADD COLUMN attested_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN last_seen INTEGER NOT NULL DEFAULT 0;

-- A used token stays until its end, with the SHA-256 of the key that joined by it: an agent whose answer was lost
-- on the way may ask once more with the same key, and nobody else.
ALTER TABLE join_tokens ADD COLUMN used_by BLOB NOT NULL DEFAULT x'';
