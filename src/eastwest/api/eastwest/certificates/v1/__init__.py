"""Generated from proto/eastwest/certificates/v1 by tools/generate.py."""
