"""Generated from proto/spire/api/server/bundle by tools/generate.py."""
