"""Generated from proto/eastwest/mtls/v1 by tools/generate.py."""
