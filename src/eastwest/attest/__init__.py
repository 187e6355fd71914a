"""Evidence into selectors: the ports that node and workload attestors serve, and the match of selectors with entries.

No attestor lives here (``eastwest.plugins``) and none is chosen here; the kernel's word on a caller comes from
``eastwest.rpc.peer``. Start at ``eastwest.attest.workload``.
"""
