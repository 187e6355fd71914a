"""The log towards the world: its second key, its listener, and the witnesses that cosign its checkpoints.

Start at ``eastwest.server.log.witnesses``. None of this delays an issuance: it begins once a checkpoint is published.
"""
