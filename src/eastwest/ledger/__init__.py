"""Decisions as records: one row per refused call, counted rows per minute for allowed ones.

Nothing here receives or stores them: access logs arrive in ``eastwest.agent.als``, storage is behind a port.
Start at ``eastwest.ledger.record``.
"""
