"""The estate that people write, and what it means: checked model, Cedar policies, compiled tables, differences.

Nothing here reads a directory, talks to a proxy or changes anything: files come in as bytes, plain data goes out.
Start at ``eastwest.policy.load`` (files to ``Estate``), then ``eastwest.policy.table`` (``Estate`` to tables).
"""
