"""Who may have which identity: registration entries, attested nodes, join tokens, and the closure between them.

It neither attests, signs nor stores: selectors come from ``eastwest.attest``, durability from a ``RegistryStore``,
and certificates leave through ``eastwest.issuance``. Start at ``eastwest.registry.registry``.
"""
