"""Generated from proto/spire/api/server/debug/v1 by tools/generate.py."""
