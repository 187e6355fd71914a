"""Generated from proto/eastwest/log/v1 by tools/generate.py."""
