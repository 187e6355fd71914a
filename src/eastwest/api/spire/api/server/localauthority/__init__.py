"""Generated from proto/spire/api/server/localauthority by tools/generate.py."""
