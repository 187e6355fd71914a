"""Generated from proto/spire/api/server/logger by tools/generate.py."""
