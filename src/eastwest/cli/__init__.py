"""The command line: one module for each noun, each thin over the package that does the work.

Heavy imports happen inside commands, so that ``--help`` is quick. Start at ``eastwest.cli.main``.
"""
