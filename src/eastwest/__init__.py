"""Eastwest: one system for trust between services.

Identity (SPIFFE), proof (mTLS), decision (Cedar, enforced in Envoy) and evidence
(a transparency log). Start at ``docs/map.md``; the command line is ``eastwest.cli.main``.
"""

__version__ = "0.1.0"
