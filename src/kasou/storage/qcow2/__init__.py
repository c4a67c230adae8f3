"""The qcow2 image format, versions 2 and 3. (QEMU, docs/interop/qcow2)

- `header`      the first cluster: sizes, features, where the tables are
- `geometry`    how offsets are cut, and the bits of table entries
- `tables`      L1 and L2: which host cluster holds a guest cluster
- `refcounts`   which host clusters are in use; the allocator
- `compressed`  compressed clusters
- `snapshots`   the list of internal snapshots
- `reading`     where each guest byte is, and fetching it
- `committing`  the order in which things reach the medium
- `writing`     in place, or copy on write; discard and zeroes
- `image`       the disk
- `create`      a new, empty image
- `check`       does every table agree with every other
- `mend`        counting references anew
"""
