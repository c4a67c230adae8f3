"""Block back ends: what a disk's bytes are kept in.

- `file`     an open image file: reads, writes, flushes, cache modes
- `direct`   the same past the host's page cache
- `locks`    who may open an image at the same time
- `opening`  flags, locks and cache mode together
- `raw`      an image file, byte for byte
- `qcow2`    the qcow2 format
- `create`   new image files, whole or not at all
- `disk`     opening a disk by name, with its backing chain; live overlays
- `inspect`  what an image is, and whether it is whole
- `convert`  copying a disk into one new file
"""
