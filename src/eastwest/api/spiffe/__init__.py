"""Generated from proto/spiffe by tools/generate.py."""
