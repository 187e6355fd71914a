"""Generated from proto/spire/api/server/svid by tools/generate.py."""
