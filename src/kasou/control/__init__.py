"""The operations on a running machine, and what attaches it to the outside.

Reading order: `terminal`.
"""
