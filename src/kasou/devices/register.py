"""Registers, declared once: what dispatch, snapshots and documentation are derived from.

A device lists its registers; the base class turns the list into tables of bound functions keyed by
(offset, size), so that an access costs one dictionary look-up. A register named `LSR` reads through
the method `read_lsr` and writes through `write_lsr` where the class has them, else from and to
`self.value["LSR"]`. A register with a `count` is an array; its hooks take the index first.

Which accesses a register answers:

- its own `size`, or those in `sizes`: a wider access is zero-extended, a narrower one reaches a
  naturally aligned piece of the register (a write then reads the rest first);
- in every bank, or only while the device's `bank` is the one in `when`.

Anything else raises `BusError`, which the hart takes as an access fault. A `lax` device answers
holes (no register at this offset, or none for this direction) with zero and ignores writes to them,
as real parts and QEMU do; the wrong size for an existing register is an error there too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

from kasou.errors import BusError, ConfigError

ANY_SIZE = (1, 2, 4, 8)
"""For `Register.sizes`: every size a hart can access."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register or an array of them, at byte `offset` in the device's window."""

    name: str
    offset: int
    size: int = 4
    access: Literal["r", "w", "rw"] = "rw"
    reset: int = 0
    sizes: tuple[int, ...] = ()
    count: int | None = None
    stride: int = 0
    when: str = ""

    def offsets(self) -> range:
        """The offsets of the elements; a register that is no array is its only element."""
        step = self.stride or self.size
        return range(self.offset, self.offset + step * (self.count or 1), step)


class Device(Protocol):
    """What the bus needs of a device. `value` fits in `size` bytes; `size` is 1, 2, 4 or 8."""

    def read(self, offset: int, size: int) -> int:
        """The value at `offset`, unsigned. Raises `BusError`."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Store `value` at `offset`. Raises `BusError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """A device at rest: the plain registers by name, and in subclasses what else it remembers."""

    version: int = 1
    registers: Mapping[str, int]


S = TypeVar("S", bound=DeviceState)
Reads = dict[tuple[int, int], Callable[[], int]]
Writes = dict[tuple[int, int], Callable[[int], None]]


class RegisterDevice(Generic[S]):
    """Base of every device: dispatch from the declaration, and the reset of plain registers."""

    registers: ClassVar[tuple[Register, ...]] = ()
    lax: ClassVar[bool] = False
    state_version: ClassVar[int] = 1

    def __init__(self, registers: tuple[Register, ...] | None = None) -> None:
        """Build the tables; `registers` overrides the class's list where it depends on `self`."""
        self.layout = type(self).registers if registers is None else registers
        self.value: dict[str, int] = {}
        banks = {r.when for r in self.layout} - {""} or {""}
        self._banks = {bank: self._tables(bank) for bank in sorted(banks)}
        self._bank = ""
        self._reads, self._writes = next(iter(self._banks.values()))
        self._reset_values()

    @property
    def bank(self) -> str:
        """The bank whose registers are visible now."""
        return self._bank

    @bank.setter
    def bank(self, name: str) -> None:
        self._bank = name
        self._reads, self._writes = self._banks[name]

    def read(self, offset: int, size: int) -> int:
        """The value of the register at `offset`. Raises `BusError`."""
        handler = self._reads.get((offset, size))
        if handler is None:
            self._missed(offset, size, "r")
            return 0
        return handler()

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `value` to the register at `offset`. Raises `BusError`."""
        handler = self._writes.get((offset, size))
        if handler is None:
            self._missed(offset, size, "w")
            return
        handler(value)

    def reset(self) -> None:
        """Return to the state after power-on; subclasses extend this."""
        self._reset_values()

    def save(self) -> S:
        """The device at rest, independent of what happens to it afterwards."""
        raise NotImplementedError

    def restore(self, state: S) -> None:
        """Become what `save` saw and drive the output lines accordingly."""
        raise NotImplementedError

    def _reset_values(self) -> None:
        self.value.update({r.name: r.reset for r in self.layout if r.count is None})

    def _restore_values(self, state: DeviceState) -> None:
        """Check the version of `state` and take over its plain registers."""
        check_version(type(self).__name__, state.version, self.state_version)
        self.value.update({n: v for n, v in state.registers.items() if n in self.value})

    def _missed(self, offset: int, size: int, access: str) -> None:
        """Raise the `BusError` that says what is wrong, unless a lax device lets it pass."""
        device = type(self).__name__
        for r in self.layout:
            if r.when and r.when != self._bank:
                continue
            for at in r.offsets():
                if at < offset + size and offset < at + r.size:
                    if access not in r.access:
                        if self.lax:
                            return
                        verb = "read of a write-only" if access == "r" else "write to a read-only"
                        raise BusError(f"{device}.{r.name}: {verb} register")
                    raise BusError(
                        f"{device}.{r.name}: {size}-byte access at {offset:#x} "
                        f"to a {r.size}-byte register at {at:#x}"
                    )
        if not self.lax or offset % size:
            raise BusError(f"{device}: no register for a {size}-byte access at {offset:#x}")

    def _tables(self, bank: str) -> tuple[Reads, Writes]:
        reads: Reads = {}
        writes: Writes = {}
        for r in self.layout:
            if r.when not in ("", bank):
                continue
            for index, at in enumerate(r.offsets()):
                read, write = self._functions(r, index)
                for size in r.sizes or (r.size,):
                    for piece in range(0, r.size, size):
                        key = (at + piece, size)
                        if "r" in r.access:
                            assert key not in reads, f"{r.name}: {key} is taken"
                            reads[key] = read if size >= r.size else _part(read, piece, size)
                        if "w" in r.access:
                            assert key not in writes, f"{r.name}: {key} is taken"
                            writes[key] = _sized_write(read, write, r.size, piece, size)
        return reads, writes

    def _functions(
        self, r: Register, index: int
    ) -> tuple[Callable[[], int], Callable[[int], None]]:
        """Read and write of one whole register: the hooks, else the plain value."""
        read: Callable[..., int] | None = getattr(self, f"read_{r.name.lower()}", None)
        write: Callable[..., None] | None = getattr(self, f"write_{r.name.lower()}", None)
        if r.count is not None:
            assert read or "r" not in r.access, f"{r.name}: an array needs a read hook"
            assert write or "w" not in r.access, f"{r.name}: an array needs a write hook"
            return partial(read or _zero, index), partial(write or _ignore, index)
        return (
            read or partial(self.value.__getitem__, r.name),
            write or partial(self.value.__setitem__, r.name),
        )


def check_version(device: str, found: int, expected: int) -> None:
    """Refuse the state of another version. Raises `ConfigError`."""
    if found != expected:
        raise ConfigError(
            f"{device}: the snapshot has state version {found}, this kasou reads {expected}; "
            "load it with the kasou that saved it"
        )


def _zero(*_: int) -> int:
    return 0


def _ignore(*_: int) -> None:
    pass


def _part(read: Callable[[], int], piece: int, size: int) -> Callable[[], int]:
    shift, mask = 8 * piece, (1 << 8 * size) - 1
    return lambda: read() >> shift & mask


def _sized_write(
    read: Callable[[], int], write: Callable[[int], None], full: int, piece: int, size: int
) -> Callable[[int], None]:
    if size == full:
        return write
    if size > full:
        whole = (1 << 8 * full) - 1
        return lambda value: write(value & whole)
    shift = 8 * piece
    mask = (1 << 8 * size) - 1 << shift
    return lambda value: write(read() & ~mask | value << shift & mask)
