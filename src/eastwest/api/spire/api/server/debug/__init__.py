"""Generated from proto/spire/api/server/debug by tools/generate.py."""
