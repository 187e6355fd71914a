"""Generated from proto/eastwest/agent by tools/generate.py."""
