"""What Python applications import to prove who they are and to enforce policy without a proxy.

The same table that an Envoy would run comes from the agent's socket, and is decided by the same code that the table is
tested with. Keys and trust come from the Workload API and rotate under open connections. Start at
``source.py:RuleSource``; servers: ``asgi.py`` (with ``uvicorn_tls.py``) and ``grpc.py``; clients: ``httpx.py``.

Not here: making tokens (``eastwest.server.tokens``) and making tables (``eastwest.policy``).
"""
