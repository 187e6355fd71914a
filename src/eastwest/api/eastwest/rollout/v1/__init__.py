"""Generated from proto/eastwest/rollout/v1 by tools/generate.py."""
