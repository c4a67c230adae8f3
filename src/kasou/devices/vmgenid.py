"""The VM generation identifier: tells a guest that it is a copy.

    0x00  ID    16 bytes, different for every copy of a VM and every return to a snapshot

A change raises the interrupt once; Linux then mixes the identifier into its random number generator, so
that two copies do not draw the same secrets. ("Virtual Machine Generation ID", Microsoft 2012; Linux,
Documentation/devicetree/bindings/rng/microsoft,vmgenid.yaml)
"""

from dataclasses import dataclass

from kasou.devices.register import ANY_SIZE, DeviceState, Register, RegisterDevice
from kasou.ports import IrqLine

ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VmGenIdState(DeviceState):
    """The identifier."""

    identifier: bytes


class VmGenId(RegisterDevice[VmGenIdState]):
    """`microsoft,vmgenid`, holding `identifier` (16 bytes) from the start."""

    registers = (Register("ID", 0x00, size=8, count=2, access="r", sizes=ANY_SIZE),)

    def __init__(self, identifier: bytes, irq: IrqLine) -> None:
        assert len(identifier) == ID_BYTES, "an identifier is 16 bytes"
        super().__init__()
        self._identifier = identifier
        self._irq = irq

    def renew(self, identifier: bytes) -> None:
        """This is another copy now; the guest is interrupted."""
        assert len(identifier) == ID_BYTES, "an identifier is 16 bytes"
        self._identifier = identifier
        # A pulse: there is no register to acknowledge it, and the PLIC keeps what it has seen.
        self._irq(True)
        self._irq(False)

    def read_id(self, index: int) -> int:
        """Half of the identifier."""
        return int.from_bytes(self._identifier[8 * index : 8 * index + 8], "little")

    def save(self) -> VmGenIdState:
        """The identifier."""
        return VmGenIdState(registers={}, identifier=self._identifier)

    def restore(self, state: VmGenIdState) -> None:
        """The same machine as before: no interrupt."""
        self._restore_values(state)
        self._identifier = state.identifier.ljust(ID_BYTES, b"\0")[:ID_BYTES]
