"""The decision ledger in the server: rows in, segments sealed into the log, questions answered.

Start at ``eastwest.server.ledger.keeper``.
"""
