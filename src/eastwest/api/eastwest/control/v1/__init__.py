"""Generated from proto/eastwest/control/v1 by tools/generate.py."""
