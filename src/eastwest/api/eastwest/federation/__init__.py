"""Generated from proto/eastwest/federation by tools/generate.py."""
