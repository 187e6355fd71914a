"""Generated from proto/eastwest/containment by tools/generate.py."""
