"""Generated from proto/eastwest/changes/v1 by tools/generate.py."""
