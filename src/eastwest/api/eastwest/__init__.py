"""Generated from proto/eastwest by tools/generate.py."""
