"""Fakes and contract suites that ship with the product: a clock to move, repeatable randomness, a ready authority.

Nothing here is for production, and nothing here patches or mocks: each fake serves the same port as the real part.
Start at ``FakeClock`` and ``TestCA``.
"""

from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.keys import KeyStoreContract
from eastwest.testing.upstreams import UpstreamContract

__all__ = ["FakeClock", "KeyStoreContract", "SeededEntropy", "TestCA", "UpstreamContract"]
