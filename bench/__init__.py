"""Measurements of the running system: real processes on loopback, CPU from /proc, medians.

Not part of the product, and no test: a slow machine fails nothing here. Start at ``bench/README.md``.
"""
