"""Generated from proto/spire/api/server/localauthority/v1 by tools/generate.py."""
