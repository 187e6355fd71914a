"""Generated from proto/spire/api/server/entry by tools/generate.py."""
