"""What is likely wrong with an estate that is valid: rights too wide, doors of unlike strength, rules without effect.

Does: findings with rule, severity, place, sentence and fix, from an estate and its compiled table; waivers that
excuse them; SARIF. Does not: stop anything (``eastwest.policy.check`` and ``plan`` do), look at traffic, or read files.
Start at ``run.py:lint``; the list of rules is ``rules.py``, each family is a module of its own.
"""
