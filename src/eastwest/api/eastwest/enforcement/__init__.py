"""Generated from proto/eastwest/enforcement by tools/generate.py."""
