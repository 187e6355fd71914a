"""Hands the ledger's rows on to sinks (``eastwest.ledger.export.ports``), each at its own pace.

Start at ``eastwest.server.export.feeder``.
"""
