"""Generated from proto/spire/api/server/trustdomain/v1 by tools/generate.py."""
