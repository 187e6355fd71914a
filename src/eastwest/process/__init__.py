"""What each of our long-running processes needs of its machine: a lock, durable files, logging, a word to systemd.

Nothing here knows what the process does. Start at ``eastwest.process.files``.
"""
