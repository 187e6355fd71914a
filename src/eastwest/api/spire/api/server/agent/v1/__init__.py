"""Generated from proto/spire/api/server/agent/v1 by tools/generate.py."""
