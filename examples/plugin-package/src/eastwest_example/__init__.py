"""Plug-ins for Eastwest, one of each kind; named in ``pyproject.toml`` as entry points."""
