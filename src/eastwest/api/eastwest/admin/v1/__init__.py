"""Generated from proto/eastwest/admin/v1 by tools/generate.py."""
