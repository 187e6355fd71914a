"""Generated from proto/eastwest/insight/v1 by tools/generate.py."""
