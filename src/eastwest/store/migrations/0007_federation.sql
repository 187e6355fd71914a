-- Federation relationships, and the last good bundle of each foreign trust domain.
CREATE TABLE federation_relationships (
  trust_domain TEXT PRIMARY KEY,
  endpoint_url TEXT NOT NULL,
  profile TEXT NOT NULL,
  endpoint_spiffe_id TEXT NOT NULL,
  origin TEXT NOT NULL
) STRICT;

CREATE TABLE federated_bundles (
  trust_domain TEXT PRIMARY KEY,
  bundle BLOB NOT NULL
) STRICT;
