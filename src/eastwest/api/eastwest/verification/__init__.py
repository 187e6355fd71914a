"""Generated from proto/eastwest/verification by tools/generate.py."""
