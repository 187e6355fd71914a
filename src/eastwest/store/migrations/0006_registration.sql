-- what registration adds to entries.
ALTER TABLE entries ADD COLUMN environment TEXT NOT NULL DEFAULT '';
ALTER TABLE entries ADD COLUMN managed_by TEXT NOT NULL DEFAULT '';
-- JSON object: name to text or list of texts.
ALTER TABLE entries ADD COLUMN attributes TEXT NOT NULL DEFAULT '{}';
UPDATE entries SET managed_by = origin;

-- Certificates issued under entries that give rights on the server (admin, downstream): a certificate has these
-- rights by the entry that it was issued under, never by its SPIFFE ID alone. not_after is in Unix seconds.
CREATE TABLE privileged_svids (
    serial    TEXT PRIMARY KEY,
    entry_id  TEXT NOT NULL,
    not_after INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX privileged_svids_end ON privileged_svids (not_after);
