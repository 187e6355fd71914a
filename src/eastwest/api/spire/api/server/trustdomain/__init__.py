"""Generated from proto/spire/api/server/trustdomain by tools/generate.py."""
