"""The transport layer: from program to program.

Reading order: `udp`, then the package `tcp`.
"""
