"""Generated from proto/eastwest/federation/v1 by tools/generate.py."""
