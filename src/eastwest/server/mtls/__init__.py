"""Towards strict mTLS: who would break, whether the record is enough to say so, and the switch itself.

Start at ``service.py``; the judgement is ``eastwest.ledger.breaks``, which asks nothing of anybody.
"""
