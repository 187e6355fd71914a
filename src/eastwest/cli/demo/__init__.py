"""``eastwest demo``: a compromised notification service attacks a small estate twice, without and with Eastwest.

It starts real processes and reads what they say; it decides, signs and enforces nothing itself.
Start at ``command.py`` (options), then ``story.py`` (the order of events); ``app.py`` is the program of every service.
"""
