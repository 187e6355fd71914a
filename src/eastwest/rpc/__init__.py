"""gRPC in one place: serving on HTTP/2 of our own or grpclib's, calling on grpclib, TLS, status, callers' processes.

Knows nothing of what is served. Start at ``eastwest.rpc.service`` for serving and ``eastwest.rpc.client`` for calling.
"""
