"""Generated from proto/eastwest/certificates by tools/generate.py."""
