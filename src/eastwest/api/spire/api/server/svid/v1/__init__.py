"""Generated from proto/spire/api/server/svid/v1 by tools/generate.py."""
