"""Generated from proto/eastwest/admin by tools/generate.py."""
