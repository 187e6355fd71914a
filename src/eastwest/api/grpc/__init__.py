"""Generated from proto/grpc by tools/generate.py."""
