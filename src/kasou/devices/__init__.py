"""Devices: the parts of the board that answer loads and stores.

A device knows neither its address nor what stands behind it: bytes in, bytes out, an interrupt
line, time as an argument. All calls are made under one lock, the board's. Reading order:

- `register`       a device's registers, declared once; the base of every device
- `bus`            which device answers a guest-physical address
- `test_finisher`  the smallest device: power off, fail, reset
- `rtc`            the Goldfish real-time clock, with its alarm
- `uart16550`      the serial port
- `plic`           the interrupt controller for devices
- `aclint`         software interrupts and timers of the harts
- `fw_cfg`         files that firmware can read
- `pci`            the PCI bus: host bridge, configuration space, functions
- `virtio`         paravirtual devices: queues, transports, block, net, console and more
"""
