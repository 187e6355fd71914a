"""What a candidate policy would have changed for recorded calls, and what those calls need at least.

Start in ``service.py``; the work itself is done by another process (``eastwest.store.ledger_replay``).
"""
