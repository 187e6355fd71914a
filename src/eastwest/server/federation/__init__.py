"""Other trust domains: relationships kept, their bundles fetched, our bundle served to them.

Which bundles are fit is ``eastwest.registry.federation``; what agents get of them ``eastwest.server.view``. Start at
``eastwest.server.federation.keeper.keeper``.
"""
