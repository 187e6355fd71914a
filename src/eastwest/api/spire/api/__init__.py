"""Generated from proto/spire/api by tools/generate.py."""
