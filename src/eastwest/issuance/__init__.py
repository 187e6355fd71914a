"""The one door: every X.509- and JWT-SVID of a trust domain comes into being here, recorded before it is released.

Who may ask for which entry is decided before (``eastwest.registry``); how the bytes look is ``eastwest.pki``'s matter.
Start at ``eastwest.issuance.issuer``.
"""
