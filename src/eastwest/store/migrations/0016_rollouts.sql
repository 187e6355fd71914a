-- Who stands behind each version (JSON of eastwest.registry.authorization.Authorization), which one was in force before
-- it, and why it came: '' for apply, else such as rollback or brake.
ALTER TABLE estates ADD COLUMN previous TEXT NOT NULL DEFAULT '';
ALTER TABLE estates ADD COLUMN cause TEXT NOT NULL DEFAULT '';
ALTER TABLE estates ADD COLUMN standing BLOB;

-- Rollouts (JSON of eastwest.policy.rollout.Progress); the newest is the one that is under way, if it is open.
CREATE TABLE rollouts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  version TEXT NOT NULL,
  progress BLOB NOT NULL
) STRICT;
