"""Generated from proto/spiffe/workload by tools/generate.py."""
