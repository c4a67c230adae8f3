"""The physical layer: what a wire does to the bytes that are sent over it.

Reading order: `link`.
"""
