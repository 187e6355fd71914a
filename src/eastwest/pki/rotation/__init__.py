"""Which keys sign, which are to come and which are on their way out: the certificate authority's state as a value.

    prepared ──activate──► active ──(its successor is activated)──► old ──taint──► old, tainted ──revoke──► gone
        └──discard──► gone                                           └──(24 h after its end)──► gone

The same table holds for a root with its issuing CAs (``x509``), for one issuing CA below the active root (``issuing``)
and for a key of JWT-SVIDs (``jwt``). These are SPIRE's rules: only what is prepared is activated, only what is old is
tainted, only what is tainted is revoked. A trust domain has up to two hierarchies side by side, each with its own
active root: the classical one, and one whose keys are all ML-DSA-65.

``state`` is the value, ``additions`` what comes into it, ``lifecycle`` what becomes of that. Each of their functions
takes a state and returns the next one, or raises ``FailedPrecondition`` or ``NotFound`` and leaves everything as it
was; whether all have confirmed is asked elsewhere (``eastwest.pki.confirmation``), and when something is due as well
(``eastwest.pki.schedule``). Times are Unix seconds, certificates and public keys DER.
"""
