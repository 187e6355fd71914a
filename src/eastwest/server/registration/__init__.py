"""Who registers what, over the admin socket and the agents' port: entries, join tokens, nodes, and the rights to them.

The rules are in ``eastwest.registry``; SPIRE's own messages are served by ``eastwest.server.spire``. Start at
``eastwest.server.registration.rights``.
"""
