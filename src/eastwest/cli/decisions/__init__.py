"""``eastwest decisions``: asking the ledger, of a server or of its files. Start at ``command.py``."""
