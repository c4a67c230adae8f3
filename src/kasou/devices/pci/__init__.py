"""PCI: devices that say where they want to be, and are told. (PCI Local Bus 3.0; PCIe 5.0, 7.2.2)

Reading order:

- `config_space`  the 256 bytes in which a function describes itself and is configured
- `function`      a device on the bus: configuration space, BARs, an interrupt pin
- `host`          the host bridge: ECAM, windows onto the BARs, the four interrupt wires
"""
