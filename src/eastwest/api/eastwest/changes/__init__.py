"""Generated from proto/eastwest/changes by tools/generate.py."""
