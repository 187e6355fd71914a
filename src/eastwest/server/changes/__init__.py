"""Two persons for what is risky: changes that wait for a word, the door at which it is asked for, and break-glass.

What a change opens and whose word that needs is thought out in ``eastwest.policy.risk``; who may give it in
``eastwest.registry.changes``. Here it is stored, recorded and asked. Start at ``keeper.py:Changes``.
"""
