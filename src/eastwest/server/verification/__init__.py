"""Runtime proof: canaries ask every enforcement point what it must allow and what it must refuse.

Start in ``keeper.py`` (a run from begin to finding), then ``prober.py`` (the calls) and ``diagnosis.py`` (what they
mean). What is asked is decided in ``eastwest.policy.canary``.
"""
