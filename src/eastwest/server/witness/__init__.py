"""``eastwest witness run``: a process of its own that watches other organisations' logs and cosigns what is consistent.

Start at ``eastwest.server.witness.service``. It speaks C2SP tlog-witness, so any log can be watched by it.
"""
