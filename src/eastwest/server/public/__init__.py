"""What strangers may ask over HTTP: CRLs and OCSP, tokens' keys as an OIDC provider, and the listener they share.

Nothing here needs or gives an identity; everything served is signed or public. Start at
``eastwest.server.public.endpoints.endpoints``.
"""
