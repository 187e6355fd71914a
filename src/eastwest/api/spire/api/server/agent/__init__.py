"""Generated from proto/spire/api/server/agent by tools/generate.py."""
