"""Generated from proto/spire/api/server/bundle/v1 by tools/generate.py."""
