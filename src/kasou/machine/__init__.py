"""One computer: harts, RAM, devices, and what tells a kernel about them. Reading order:

- `device_tree`  nodes, and the blob they become
- `board`        the memory map; devices on the bus, wired to the PLIC
"""
