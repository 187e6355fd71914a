"""Generated from proto/eastwest/impact by tools/generate.py."""
