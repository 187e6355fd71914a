"""Generated from proto/eastwest/insight by tools/generate.py."""
