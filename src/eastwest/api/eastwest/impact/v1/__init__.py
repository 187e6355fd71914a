"""Generated from proto/eastwest/impact/v1 by tools/generate.py."""
