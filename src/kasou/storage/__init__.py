"""Block back ends: what a disk's bytes are kept in.

- `raw`  an image file, byte for byte
"""
