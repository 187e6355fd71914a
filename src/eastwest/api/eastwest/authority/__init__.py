"""Generated from proto/eastwest/authority by tools/generate.py."""
