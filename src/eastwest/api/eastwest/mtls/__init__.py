"""Generated from proto/eastwest/mtls by tools/generate.py."""
