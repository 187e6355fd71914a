"""Generated from proto/spire/api/server/entry/v1 by tools/generate.py."""
