"""Keys, profiles, certificates and tokens as pure values: what may be signed, how its bytes look, whether they verify.

No certificate leaves from here (``eastwest.issuance`` is the one door), nothing is read from or written to a disk
(``eastwest.plugins`` holds the key stores), and time comes in as an argument.
Start at ``eastwest.pki.profile`` for the rules and at ``eastwest.pki.hierarchy`` for the certificate authority.
"""
