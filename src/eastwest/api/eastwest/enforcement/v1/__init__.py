"""Generated from proto/eastwest/enforcement/v1 by tools/generate.py."""
