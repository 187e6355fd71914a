"""Cutting an identity off: who is meant, the evidence, the order of things, and how far it has come.

Does not decide what a containment is (``eastwest.registry.containment``), nor how it is enforced
(``eastwest.mesh.contained``, ``eastwest.agent.containment``). Start at ``keeper``.
"""
