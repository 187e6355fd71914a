"""The compiled table for other enforcement points, and for review: text out, nothing else.

Each format is a module with one function from a ``CompiledPolicy`` to an ``Exported``. No export allows what the table
denies: what a format cannot say is left out there, and so denied, and told as ``Narrower``. Formats that see less than
identity (labels) say so about themselves. Begin with ``grants.grants``, what the table allows as rules.
docs/reference/exports.md says for each format what is exact, narrower and weaker.
"""
