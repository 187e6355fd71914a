"""gRPC on grpclib and uvloop, wrapped once: serving, calling, TLS, status and callers' processes.

Knows nothing of what is served. Start at ``eastwest.rpc.service`` for serving and ``eastwest.rpc.client`` for calling.
"""
