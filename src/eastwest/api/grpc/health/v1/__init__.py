"""Generated from proto/grpc/health/v1 by tools/generate.py."""
