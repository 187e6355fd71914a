"""Generated from proto/eastwest/agent/v1 by tools/generate.py."""
