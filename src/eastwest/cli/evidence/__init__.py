"""``eastwest evidence``: what is recorded of one principal, in one archive that anybody can judge offline.

Start at ``command.py``. ``collect.py`` chooses, ``archive.py`` writes, ``page.py`` makes it readable. ``verifier.py``
goes into every archive as ``verify.py``: it stands alone, imports nothing of ours, and is what ``verify`` runs too.
"""
