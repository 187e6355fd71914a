"""The SPIRE server API, so that stock agents, tools and controllers work unchanged: one module for each service.

Each translates messages and asks a gate; rules live in the registry and the issuer.
Start at ``eastwest.server.spire.svid``.
"""
