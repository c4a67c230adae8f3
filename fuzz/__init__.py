"""Fuzzers: what a hostile guest could send to devices, by the million.

    python -m fuzz                         every device, transport and layout, a few seconds each
    python -m fuzz block --seconds 60      one device for longer
    python -m fuzz net --transport pci --packed --seed 1234     the run that a failure names

Reading order: `rigs` (every device with what it needs around it), `hostile_driver` (rings, chains and
requests that break the rules), `registers` (random accesses to transports and the PCI bus). A crash
becomes a test. CI runs `tests/fuzz`.
"""
