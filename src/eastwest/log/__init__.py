"""The transparency log as values: entries, RFC 6962 tree, C2SP tiles, signed notes, proofs, verification.

No storage, no files and no keys: those come in through ports (``eastwest.log.ports``) and a signer.
Start at ``eastwest.log.entry`` (what is recorded), then ``tree``, ``tiles`` and ``verify``.
"""
