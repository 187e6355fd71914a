"""Adapters of the domains' storage ports on SQLite: one file of code per aggregate, plain SQL.

No decision is made here; what may be stored, and what it means, is the domains' business.
Start at ``eastwest.store.database`` (the engine), then ``eastwest.store.log`` (an adapter on it).
"""
