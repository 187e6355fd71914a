"""Generated from proto/eastwest/authority/v1 by tools/generate.py."""
