"""Generated from proto/eastwest/approvals by tools/generate.py."""
