"""Puts the authority together: listeners, gRPC services, control streams, start-up and shutdown.

No rule of trust lives here: issuance, registry, policy and log decide; this package wires and translates.
Start at ``eastwest.server.app``.
"""
