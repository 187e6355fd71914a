"""Adapters behind ports, found by entry point: key stores, upstream authorities, node and workload attestors.

No rule of the product is decided here, and no core imports this package: processes load a plugin by its name.
Start at the port it serves, such as ``eastwest.pki.signer`` for ``disk_keys`` and ``memory_keys``.
"""
