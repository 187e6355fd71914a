"""Enforcement config: a workload's compiled table becomes named Envoy resources, in versions that are acknowledged.

Nothing here opens a socket or a file: streams live in ``eastwest.agent.xds``, and what is allowed is decided in
``eastwest.policy``. Start at ``eastwest.mesh.resources``.
"""
