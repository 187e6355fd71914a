"""The trust domain's CA at work: its keys opened, its generations rotated, its bundle told to whoever relies on it.

The rules are values in ``eastwest.pki.rotation``; issuing itself is ``eastwest.issuance``. Start at
``eastwest.server.ca.rotation``.
"""
