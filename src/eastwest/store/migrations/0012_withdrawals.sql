-- Who withdrew an approval, apart from who granted it. Times are Unix seconds.
ALTER TABLE approvals ADD COLUMN withdrawn_by TEXT NOT NULL DEFAULT '';
ALTER TABLE approvals ADD COLUMN withdrawn_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE approvals ADD COLUMN withdrawal_reason TEXT NOT NULL DEFAULT '';
