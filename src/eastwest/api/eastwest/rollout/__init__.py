"""Generated from proto/eastwest/rollout by tools/generate.py."""
