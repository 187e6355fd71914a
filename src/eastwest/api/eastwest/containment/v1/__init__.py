"""Generated from proto/eastwest/containment/v1 by tools/generate.py."""
