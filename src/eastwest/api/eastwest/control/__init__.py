"""Generated from proto/eastwest/control by tools/generate.py."""
