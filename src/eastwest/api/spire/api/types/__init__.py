"""Generated from proto/spire/api/types by tools/generate.py."""
