"""Generated from proto/spire/api/server/logger/v1 by tools/generate.py."""
