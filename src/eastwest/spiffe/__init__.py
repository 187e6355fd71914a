"""SPIFFE values: IDs, trust domains, selectors, bundles, X.509- and JWT-SVID facts.

No I/O and no signing: certificates come into being in ``eastwest.pki`` and leave through
``eastwest.issuance``. Start at ``eastwest.spiffe.id``.
"""
