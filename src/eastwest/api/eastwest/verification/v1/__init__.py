"""Generated from proto/eastwest/verification/v1 by tools/generate.py."""
