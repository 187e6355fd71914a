"""Transaction tokens: their keys, the endpoint that workloads ask, approvals, and the memory of used tokens.

What a token says is ``eastwest.policy.transaction``, whether one is made ``eastwest.issuance.transaction``, the steps
of an approval ``eastwest.registry.approvals``; here they are stored, recorded and served. Start at ``parts.py``.
"""
