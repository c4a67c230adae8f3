"""GDB's remote serial protocol: bytes in, bytes out; what stands behind is a `Target`.

    $ packet # checksum      answered with + (or - to have it again), until QStartNoAckMode
    0x03                     interrupt

A hart is a thread, numbered from 1. All harts stop together and go on together (all-stop); a step
moves one hart. (GDB manual, "Remote Protocol", "Target Descriptions", "RISC-V Features")
"""

from __future__ import annotations

from typing import Protocol

from kasou.errors import KasouError, RemoteError
from kasou.isa.asm import F_NAMES, X_NAMES

INTERRUPT = 0x03
PACKET_BYTES = 0x4000
"""The longest packet that we take, told to GDB in hexadecimal."""
SIGINT, SIGTRAP = 2, 5
FEATURES = (
    f"PacketSize={PACKET_BYTES:x};qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+"
)
_ESCAPE, _XOR = 0x7D, 0x20
CSRS = (
    "fflags", "frm", "stvec", "scounteren", "sscratch", "sepc", "scause", "stval", "satp",
    "mstatus", "medeleg", "mideleg", "mie", "mtvec", "mscratch", "mepc", "mcause", "mtval", "mip",
    "priv",
)  # fmt: skip
"""Shown besides the integer and floating-point registers; read-only."""
PC = 32
FIRST_FLOAT = 33
FIRST_CSR = 65
REGISTERS = FIRST_CSR + len(CSRS)


class Target(Protocol):
    """What can be debugged. Harts are numbered from 0; all methods but `running` want them stopped.

    Errors are `KasouError`; GDB is told that the command failed.
    """

    @property
    def harts(self) -> int:
        """How many there are."""
        ...

    def read_register(self, hart: int, number: int) -> int:
        """x0 to x31, pc, f0 to f31, `CSRS`, by GDB's number."""
        ...

    def write_register(self, hart: int, number: int, value: int) -> None:
        """Change one of them."""
        ...

    def read_memory(self, hart: int, gva: int, n: int) -> bytes:
        """Memory as the hart's loads see it."""
        ...

    def write_memory(self, hart: int, gva: int, data: bytes) -> None:
        """Change memory as the hart's loads see it."""
        ...

    def insert_breakpoint(self, hart: int, gva: int, length: int) -> None:
        """Stop before the instruction of `length` bytes (2 or 4) at `gva`."""
        ...

    def remove_breakpoint(self, hart: int, gva: int) -> None:
        """No longer stop there."""
        ...

    def go(self) -> None:
        """Let all harts run; `stopped` of the server is called when one stops."""
        ...

    def step(self, hart: int) -> None:
        """Run one instruction of one hart, and stop."""
        ...

    def interrupt(self) -> None:
        """Stop all harts soon."""
        ...

    def kill(self) -> None:
        """End the machine."""
        ...


class GdbConnection:
    """One debugger. `receive` bytes, send what `to_send` gives; `closed` when it has left."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._input = bytearray()
        self._output = bytearray()
        self._last = b""
        self._acknowledge = True
        self._hart = 0
        self._running = False
        self.closed = False
        self.features = description()
        self.errors = 0

    # ------------------------------------------------------------------ bytes
    def receive(self, data: bytes) -> None:
        """Bytes from the debugger."""
        self._input += data
        while self._input and not self.closed:
            first = self._input[0]
            if first != ord("$"):
                del self._input[0]
                if first == INTERRUPT and self._running:
                    self._target.interrupt()
                elif first == ord("-") and self._acknowledge and self._last:
                    self._output += self._last
                continue
            end = self._input.find(b"#")
            if end < 0 or len(self._input) < end + 3:
                if len(self._input) > 2 * PACKET_BYTES:
                    self._input.clear()  # never a packet: wait for the next one
                return
            body, given = bytes(self._input[1:end]), bytes(self._input[end + 1 : end + 3])
            del self._input[: end + 3]
            self._take(body, given)

    def to_send(self) -> bytes:
        """Bytes for the debugger."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def stopped(self, hart: int, signal: int = SIGTRAP) -> None:
        """The target stopped, because of `hart`."""
        if self._running:
            self._running, self._hart = False, hart
            self._reply(self._stop_reply(signal))

    def ended(self, code: int) -> None:
        """The machine has ended."""
        if self._running:
            self._running = False
            self._reply(b"W%02x" % (code & 0xFF))
        self.closed = True

    def _take(self, body: bytes, given: bytes) -> None:
        if self._acknowledge:
            if b"%02x" % (sum(body) & 0xFF) != given.lower():
                self._output += b"-"
                return
            self._output += b"+"
        if self._running:
            return  # "all-stop": nothing but an interrupt is expected now
        try:
            answer = self._serve(body)
        except (KasouError, ValueError, IndexError):
            self.errors += 1
            answer = b"E01"
        if answer is not None:
            self._reply(answer)

    def _reply(self, body: bytes) -> None:
        escaped = bytearray()
        for byte in body:
            if byte in b"#$}*":
                escaped += bytes((_ESCAPE, byte ^ _XOR))
            else:
                escaped.append(byte)
        self._last = b"$" + bytes(escaped) + b"#%02x" % (sum(escaped) & 0xFF)
        self._output += self._last

    # ------------------------------------------------------------------ packets
    def _serve(self, body: bytes) -> bytes | None:
        """The answer to a packet; empty for one that we do not know, None for one without."""
        letter, rest = body[:1], body[1:]
        serve = getattr(self, f"_packet_{_NAMES.get(letter, 'unknown')}")
        answer: bytes | None = serve(rest)
        return answer

    def _packet_unknown(self, rest: bytes) -> bytes:
        return b""

    def _packet_why(self, rest: bytes) -> bytes:
        return self._stop_reply(SIGTRAP)

    def _packet_read_registers(self, rest: bytes) -> bytes:
        return b"".join(self._register(n) for n in range(FIRST_FLOAT))

    def _packet_write_registers(self, rest: bytes) -> bytes:
        data = bytes.fromhex(rest.decode())
        for number in range(min(FIRST_FLOAT, len(data) // 8)):
            value = int.from_bytes(data[8 * number : 8 * number + 8], "little")
            self._target.write_register(self._hart, number, value)
        return b"OK"

    def _packet_read_register(self, rest: bytes) -> bytes:
        return self._register(_bounded(rest, REGISTERS))

    def _packet_write_register(self, rest: bytes) -> bytes:
        number, value = rest.split(b"=")
        self._target.write_register(
            self._hart,
            _bounded(number, REGISTERS),
            int.from_bytes(bytes.fromhex(value.decode()), "little"),
        )
        return b"OK"

    def _packet_read_memory(self, rest: bytes) -> bytes:
        at, n = (int(one, 16) for one in rest.split(b","))
        data = self._target.read_memory(self._hart, at, min(n, PACKET_BYTES // 2))
        return data.hex().encode()

    def _packet_write_memory(self, rest: bytes) -> bytes:
        where, data = rest.split(b":", 1)
        return self._write_memory(where, bytes.fromhex(data.decode()))

    def _packet_write_binary(self, rest: bytes) -> bytes:
        where, data = rest.split(b":", 1)
        return self._write_memory(where, unescaped(data))

    def _write_memory(self, where: bytes, data: bytes) -> bytes:
        at, n = (int(one, 16) for one in where.split(b","))
        if n != len(data):
            raise RemoteError(f"gdb: {len(data)} bytes where {n} were announced")
        if data:
            self._target.write_memory(self._hart, at, data)
        return b"OK"

    def _packet_insert(self, rest: bytes) -> bytes:
        kind, at, length = rest.split(b";")[0].split(b",")
        if kind not in (b"0", b"1"):
            return b""
        self._target.insert_breakpoint(self._hart, int(at, 16), int(length, 16))
        return b"OK"

    def _packet_remove(self, rest: bytes) -> bytes:
        kind, at, _ = rest.split(b",")
        if kind not in (b"0", b"1"):
            return b""
        self._target.remove_breakpoint(self._hart, int(at, 16))
        return b"OK"

    def _packet_thread(self, rest: bytes) -> bytes:
        if rest[1:] not in (b"0", b"-1"):
            self._hart = _bounded(rest[1:], self._target.harts + 1) - 1
        return b"OK"

    def _packet_alive(self, rest: bytes) -> bytes:
        return b"OK" if 1 <= int(rest, 16) <= self._target.harts else b"E01"

    def _packet_go(self, rest: bytes) -> None:
        if rest:
            self._target.write_register(self._hart, PC, int(rest, 16))
        self._go(False, self._hart)

    def _packet_step(self, rest: bytes) -> None:
        if rest:
            self._target.write_register(self._hart, PC, int(rest, 16))
        self._go(True, self._hart)

    def _go(self, step: bool, hart: int) -> None:
        self._running = True
        if step:
            self._target.step(hart)
        else:
            self._target.go()

    def _packet_verbose(self, rest: bytes) -> bytes | None:
        if rest == b"Cont?":
            return b"vCont;c;C;s;S"
        if rest.startswith(b"Cont;"):
            self._continue(rest[5:].split(b";"))
            return None
        if rest.startswith(b"Kill"):
            self._reply(b"OK")
            self._packet_kill(b"")
            return None
        return b""

    def _continue(self, actions: list[bytes]) -> None:
        """A step for one hart, or go on with all: the first action that names a step wins."""
        for action in actions:
            what, _, thread = action.partition(b":")
            if what[:1] in (b"s", b"S"):
                hart = self._hart
                if thread and thread != b"-1":
                    hart = _bounded(thread, self._target.harts + 1) - 1
                self._go(True, hart)
                return
        self._go(False, self._hart)

    def _packet_kill(self, rest: bytes) -> None:
        self.closed = True
        self._target.kill()

    def _packet_detach(self, rest: bytes) -> None:
        self._reply(b"OK")
        self.closed = True
        self._target.go()

    def _packet_query(self, rest: bytes) -> bytes:
        name, _, argument = rest.partition(b":")
        if name == b"Supported":
            return FEATURES.encode()
        if name == b"fThreadInfo":
            return b"m" + b",".join(b"%x" % (n + 1) for n in range(self._target.harts))
        if name == b"sThreadInfo":
            return b"l"
        if name == b"C":
            return b"QC%x" % (self._hart + 1)
        if name == b"Attached":
            return b"1"
        if name.startswith(b"ThreadExtraInfo,"):
            hart = _bounded(name.partition(b",")[2], self._target.harts + 1)
            return f"hart {hart - 1}".encode().hex().encode()
        if rest.startswith(b"Xfer:features:read:target.xml:"):
            at, n = (int(one, 16) for one in argument.rpartition(b":")[2].split(b","))
            piece = self.features[at : at + n]
            return (b"m" if at + n < len(self.features) else b"l") + piece
        return b""

    def _packet_set(self, rest: bytes) -> bytes:
        if rest == b"StartNoAckMode":
            self._acknowledge = False
            return b"OK"
        return b""

    def _register(self, number: int) -> bytes:
        value = self._target.read_register(self._hart, number)
        return value.to_bytes(8, "little").hex().encode()

    def _stop_reply(self, signal: int) -> bytes:
        return b"T%02xthread:%x;" % (signal, self._hart + 1)


_NAMES = {
    b"?": "why", b"g": "read_registers", b"G": "write_registers", b"p": "read_register",
    b"P": "write_register", b"m": "read_memory", b"M": "write_memory", b"X": "write_binary",
    b"Z": "insert", b"z": "remove", b"H": "thread", b"T": "alive", b"c": "go", b"s": "step",
    b"v": "verbose", b"k": "kill", b"D": "detach", b"q": "query", b"Q": "set",
}  # fmt: skip


def _bounded(text: bytes, end: int) -> int:
    """A hexadecimal number below `end`. Raises `RemoteError`."""
    value = int(text, 16)
    if not 0 <= value < end:
        raise RemoteError(f"gdb: {value:#x} where less than {end:#x} was expected")
    return value


def unescaped(data: bytes) -> bytes:
    """Binary data as it was before `}` was put before what has a meaning."""
    out = bytearray()
    rest = iter(data)
    for byte in rest:
        if byte == _ESCAPE:
            following = next(rest, None)
            if following is None:
                raise RemoteError("gdb: binary data ends in an escape")
            byte = following ^ _XOR
        out.append(byte)
    return bytes(out)


def description() -> bytes:
    """The target description: which registers there are, by what names."""
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    lines += ["<architecture>riscv:rv64</architecture>"]
    lines += ['<feature name="org.gnu.gdb.riscv.cpu">']
    for number, name in enumerate(X_NAMES):
        kind = {"ra": "code_ptr", "sp": "data_ptr", "gp": "data_ptr", "tp": "data_ptr"}
        lines.append(_register(name, number, kind.get(name, "int")))
    lines.append(_register("pc", PC, "code_ptr"))
    lines += ["</feature>", '<feature name="org.gnu.gdb.riscv.fpu">']
    for number, name in enumerate(F_NAMES):
        lines.append(_register(name, FIRST_FLOAT + number, "ieee_double"))
    for number, name in enumerate(CSRS):
        if name == "stvec":
            lines += ["</feature>", '<feature name="org.gnu.gdb.riscv.csr">']
        if name == "priv":
            lines += ["</feature>", '<feature name="org.gnu.gdb.riscv.virtual">']
        lines.append(_register(name, FIRST_CSR + number, "int"))
    lines += ["</feature>", "</target>"]
    return "\n".join(lines).encode()


def _register(name: str, number: int, kind: str) -> str:
    return f'<reg name="{name}" bitsize="64" regnum="{number}" type="{kind}"/>'
