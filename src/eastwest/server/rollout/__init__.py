"""How new rules get to enforcement points: ring by ring, watched, and back by themselves when they deny by mistake.

Where a rollout is, is a value (``eastwest.policy.rollout.Progress``) that ``eastwest.server.estate.EstateKeeper`` keeps
beside the estate; who has which rules is said by ``eastwest.server.tables.Tables``. Here is what waits and watches.
Start at ``keeper.py:RolloutKeeper``; the brake: ``brake.py:Brake``; what people see: ``status.py``.
"""
