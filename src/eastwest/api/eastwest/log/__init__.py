"""Generated from proto/eastwest/log by tools/generate.py."""
