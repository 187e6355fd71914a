"""The agent, one per node: attests local processes, holds their keys, and serves them and their Envoys on one socket.

It decides nothing about who may have what: that is the server's word, kept as the last good state and pushed on.
Start at ``eastwest.agent.app`` for how the parts fit, ``eastwest.agent.state`` for what an agent knows.
"""
