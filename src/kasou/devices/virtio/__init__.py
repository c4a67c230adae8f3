"""Virtio devices (virtio 1.2). Reading order:

- `queue`    the split virtqueue: rings in, descriptor chains out
- `device`   what a virtio device is, whatever the transport: status, features, queues
- `mmio`     the MMIO transport: the registers a driver sees
- `block`    a disk
- `rng`      entropy
- `console`  a terminal
- `vsock`    stream sockets between host and guest; `vsock_packet`, `vsock_stream`
- `p9`       a directory of the host; its protocol is in `ninep`
"""
