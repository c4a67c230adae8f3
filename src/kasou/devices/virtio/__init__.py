"""Virtio devices (virtio 1.2). Reading order:

- `chain`    a descriptor chain: what the driver says, and room for the answer
- `queue`    a virtqueue as devices see it; its two layouts are `split` and `packed`
- `device`   what a virtio device is, whatever the transport: status, features, queues
- `mmio`     the MMIO transport: the registers a driver sees
- `pci`      the PCI transport
- `block`    a disk
- `rng`      entropy
- `console`  a terminal
- `vsock`    stream sockets between host and guest; `vsock_packet`, `vsock_stream`
- `p9`       a directory of the host; its protocol is in `ninep`

`driver_model` is the driver's side, for tests and fuzzers.
"""
