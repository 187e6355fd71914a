"""Generated from proto/grpc/health by tools/generate.py."""
