"""Generated from proto/spire by tools/generate.py."""
