"""Generated from proto/spire/api/server by tools/generate.py."""
