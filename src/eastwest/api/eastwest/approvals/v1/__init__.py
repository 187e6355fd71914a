"""Generated from proto/eastwest/approvals/v1 by tools/generate.py."""
