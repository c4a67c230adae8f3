"""The board `virt`: what is where, and the device tree that says so.

The memory map below is the only place that knows addresses and interrupt numbers; they are QEMU's.
From it come both the bus that answers harts and the tree that kernels read.

One lock: everything in here, the devices' host sides included (`uart.receive`), is called with
`board.lock` held. Harts enter by `board.bus.read` and `board.bus.write`; interrupt lines call the
harts' `HartLines` from inside. The lock is re-entrant, so that a callback may ask the board again.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from kasou.devices.aclint import Clint, ClintState, Sswi, TimerHost
from kasou.devices.bus import Bus
from kasou.devices.fw_cfg import FwCfg, FwCfgState
from kasou.devices.pci.host import WIRES, PciHost, PciState
from kasou.devices.plic import SOURCES, Plic, PlicState
from kasou.devices.register import Device, check_version
from kasou.devices.rtc import GoldfishRtc, RtcState
from kasou.devices.test_finisher import Finisher, OnFinish
from kasou.devices.uart16550 import Uart16550, UartState
from kasou.devices.virtio.block import OnError, VirtioBlock
from kasou.devices.virtio.console import VirtioConsole
from kasou.devices.virtio.device import Feature, NoDevice, VirtioDevice
from kasou.devices.virtio.mmio import MmioState, VirtioMmio
from kasou.devices.virtio.pci import VirtioPci
from kasou.devices.virtio.rng import VirtioRng
from kasou.devices.vmgenid import ID_BYTES, VmGenId, VmGenIdState
from kasou.errors import ConfigError, HostError
from kasou.machine.device_tree import Node, Value, blob, region, u64
from kasou.machine.pci_node import pci_node
from kasou.ports import ByteSink, Disk, GuestMemory


class Place(NamedTuple):
    """Where a device is; `irq` is its source at the PLIC, 0 if it has none."""

    base: int
    size: int
    irq: int = 0


# fmt: off
TEST_FINISHER = Place(0x0010_0000, 0x1000)
RTC           = Place(0x0010_1000, 0x1000, irq=11)
VMGENID       = Place(0x0010_2000, 0x10, irq=12)
CLINT         = Place(0x0200_0000, 0x1_0000)
SSWI          = Place(0x02F0_0000, 0x4000)
PLIC          = Place(0x0C00_0000, 0x60_0000)
UART          = Place(0x1000_0000, 0x100, irq=10)
VIRTIO        = tuple(Place(0x1000_1000 + 0x1000 * slot, 0x1000, irq=1 + slot) for slot in range(8))
FW_CFG        = Place(0x1010_0000, 0x18)
PCI_IO        = Place(0x0300_0000, 0x1_0000)
PCI_ECAM      = Place(0x3000_0000, 0x1000_0000, irq=32)  # to 35: four wires
PCI_MEMORY32  = Place(0x4000_0000, 0x4000_0000)
PCI_MEMORY64  = Place(0x4_0000_0000, 0x4_0000_0000)
RAM_BASE      = 0x8000_0000
# fmt: on

TIMEBASE_HZ = 10_000_000
UART_CLOCK_HZ = 3_686_400
CACHE_BLOCK_BYTES = 64
MAX_HARTS = 8
PRIVILEGES: tuple[Literal["M", "S"], ...] = ("M", "S")
"""Of a hart's PLIC contexts, in their order."""

M_SOFT, M_TIMER, M_EXTERNAL, S_SOFT, S_EXTERNAL = 3, 7, 11, 1, 9
"""Interrupt numbers at a hart (Priv. 'Machine Cause Register')."""

SINGLE_LETTERS = "iemafdqcbvh"
"""The canonical order of extensions in an ISA string."""


class HartLines(TimerHost, Protocol):
    """What the board drives at its harts: timers, software and external interrupts."""

    def set_external(self, hart: int, mode: Literal["M", "S"], on: bool) -> None:
        """Drive the external interrupt of `hart` for `mode`."""
        ...


TREE_ROOM = 0x3000
"""U-Boot keeps the device tree in as many bytes as it has, and adds this much to it without asking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardState:
    """All devices at rest."""

    version: int = 1
    clint: ClintState
    plic: PlicState
    uart: UartState
    rtc: RtcState
    fw_cfg: FwCfgState
    vmgenid: VmGenIdState
    virtio: tuple[MmioState, ...]
    pci: PciState


class Board:
    """A computer without its harts and RAM: devices on a bus, wired to the PLIC.

    `harts_port` is driven by the devices, `memory` is what they reach by DMA, `console_output`
    takes what the serial port sends. Disks come first among the virtio devices in their order (the
    first is `vda`), then the console, if it has an output, entropy, and `devices`. The first eight
    take the MMIO slots and the others go to PCI; with `transport` "pci" all do. `packed_rings`
    offers drivers the packed layout. `now_ns` is the host's time in ns since 1970; `on_alarm` is
    called when `serve` has something new to wait for. Raises `ConfigError` for what cannot be
    built.
    """

    def __init__(
        self,
        harts: int,
        ram_bytes: int,
        memory: GuestMemory,
        harts_port: HartLines,
        *,
        console_output: ByteSink,
        entropy: Callable[[int], bytes],
        now_ns: Callable[[], int],
        on_finish: OnFinish,
        on_alarm: Callable[[], None] = lambda: None,
        on_disk_error: Callable[[HostError], None] | None = None,
        disk_errors: OnError = "report",
        disks: Sequence[Disk] = (),
        devices: Sequence[VirtioDevice] = (),
        virtio_console_output: ByteSink | None = None,
        transport: Literal["mmio", "pci"] = "mmio",
        packed_rings: bool = False,
        sswi: bool = False,
    ) -> None:
        if not 1 <= harts <= MAX_HARTS:
            raise ConfigError(f"board: {harts} harts; 1 to {MAX_HARTS} are possible")
        self.lock = threading.RLock()
        self.harts = harts
        self.ram_bytes = ram_bytes
        self.bus = Bus()
        self._now_ns = now_ns

        def set_external(context: int, on: bool) -> None:
            harts_port.set_external(context // 2, PRIVILEGES[context % 2], on)

        self.plic = Plic(len(PRIVILEGES) * harts, set_external)
        self.clint = Clint(harts, harts_port)
        self.sswi = Sswi(harts, harts_port) if sswi else None
        self.finisher = Finisher(on_finish)
        self.rtc = GoldfishRtc(now_ns, self.plic.line(RTC.irq), on_alarm)
        self.uart = Uart16550(console_output, self.plic.line(UART.irq))
        self._entropy = entropy
        self.vmgenid = VmGenId(entropy(ID_BYTES), self.plic.line(VMGENID.irq))
        self.fw_cfg = FwCfg(memory)

        self.disks = [
            VirtioBlock(
                memory, disk, serial=f"kasou-disk-{n}", stopped=on_disk_error,
                on_read_error="stop" if disk_errors == "stop" else "report",
                on_write_error=disk_errors,
            )
            for n, disk in enumerate(disks)
        ]  # fmt: skip
        carried: list[VirtioDevice] = [*self.disks]
        self.console: VirtioConsole | None = None
        if virtio_console_output is not None:
            self.console = VirtioConsole(memory, virtio_console_output)
            carried.append(self.console)
        carried.append(VirtioRng(memory, entropy))
        carried += devices
        for device in carried if packed_rings else ():
            device.offer(Feature.RING_PACKED)
        slots = len(VIRTIO) if transport == "mmio" else 0
        mmio, pci = carried[:slots], carried[slots:]
        mmio += [NoDevice(memory) for _ in range(len(VIRTIO) - len(mmio))]
        self.virtio = tuple(
            VirtioMmio(device, self.plic.line(place.irq))
            for device, place in zip(mmio, VIRTIO, strict=True)
        )
        wires = [self.plic.line(PCI_ECAM.irq + n) for n in range(WIRES)]
        self.pci = PciHost(wires, PCI_MEMORY32.base, PCI_MEMORY64.base)
        for device in pci:
            self.pci.add(VirtioPci(device))
        self._carried = carried
        self._attach()

    def _attach(self) -> None:
        # fmt: off
        places: list[tuple[str, Place, Device]] = [
            ("test",   TEST_FINISHER, self.finisher),
            ("rtc",    RTC,           self.rtc),
            ("clint",  CLINT,         self.clint),
            ("plic",   PLIC,          self.plic),
            ("serial", UART,          self.uart),
            ("fw_cfg", FW_CFG,        self.fw_cfg),
            ("vmgenid", VMGENID,      self.vmgenid),
            ("pci-io", PCI_IO,        self.pci.io),
            ("ecam",   PCI_ECAM,      self.pci.ecam),
            ("pci32",  PCI_MEMORY32,  self.pci.memory32),
            ("pci64",  PCI_MEMORY64,  self.pci.memory64),
        ]
        # fmt: on
        if self.sswi:
            places.append(("sswi", SSWI, self.sswi))
        for slot, (place, transport) in enumerate(zip(VIRTIO, self.virtio, strict=True)):
            places.append((f"virtio{slot}", place, transport))
        for name, place, device in places:
            self.bus.attach(place.base, place.size, device, name)

    # ------------------------------------------------------------------ time
    def serve(self) -> int | None:
        """Do what has come due; the ns until more will, None if nothing waits."""
        with self.lock:
            self.rtc.handle_timer()
            deadline = self.rtc.deadline()
            return None if deadline is None else max(0, deadline - self._now_ns())

    def become_a_copy(self) -> None:
        """This machine is another than the one that was saved: tell the guest, which draws anew."""
        with self.lock:
            self.vmgenid.renew(self._entropy(ID_BYTES))

    # ------------------------------------------------------------------ reset, rest
    def reset(self) -> None:
        """Every device as after power-on."""
        for transport in self.virtio:
            transport.reset()
        self.pci.reset()
        for device in (self.uart, self.rtc, self.fw_cfg, self.clint, self.plic):
            device.reset()

    def save(self) -> BoardState:
        """All devices at rest; no hart may run meanwhile."""
        return BoardState(
            clint=self.clint.save(),
            plic=self.plic.save(),
            uart=self.uart.save(),
            rtc=self.rtc.save(),
            fw_cfg=self.fw_cfg.save(),
            vmgenid=self.vmgenid.save(),
            virtio=tuple(transport.save() for transport in self.virtio),
            pci=self.pci.save(),
        )

    def restore(self, state: BoardState) -> None:
        """Become what `save` saw. The PLIC is last: the others drive its wires on the way.

        Requests that were in flight are then served again.
        """
        check_version("Board", state.version, 1)
        self.clint.restore(state.clint)
        self.uart.restore(state.uart)
        self.rtc.restore(state.rtc)
        self.fw_cfg.restore(state.fw_cfg)
        self.vmgenid.restore(state.vmgenid)
        for transport, saved in zip(self.virtio, state.virtio, strict=True):
            transport.restore(saved)
        self.pci.restore(state.pci)
        self.plic.restore(state.plic)
        for device in self._carried:
            device.resume()

    # ------------------------------------------------------------------ device tree
    def device_tree(
        self,
        *,
        bootargs: str = "",
        initrd_range: tuple[int, int] | None = None,
        isa_extensions: Sequence[str],
        mmu: str | None = "sv57",
        rng_seed: bytes = b"",
        reserved: Sequence[tuple[int, int]] = (),
    ) -> bytes:
        """The flattened device tree of this board.

        `initrd_range` is (start, end), gpa; `isa_extensions` are lower-case names, single letters
        among them; `mmu` is the widest scheme, None without one; `reserved` are (gpa, size) pairs
        that the guest must leave alone.
        """
        return blob(
            self.tree(bootargs, initrd_range, isa_extensions, mmu, rng_seed),
            reserved=reserved,
            room=TREE_ROOM,
        )

    def tree(
        self,
        bootargs: str,
        initrd_range: tuple[int, int] | None,
        isa_extensions: Sequence[str],
        mmu: str | None,
        rng_seed: bytes,
    ) -> Node:
        """The tree behind `device_tree`, as nodes."""
        root = Node(
            "", _two_cells() | {"compatible": "riscv-virtio", "model": "riscv-virtio,kasou"}
        )
        root.children.append(self._chosen(bootargs, initrd_range, rng_seed))
        root.add("aliases", {"serial0": f"/soc/serial@{UART.base:x}"})
        root.add(
            f"memory@{RAM_BASE:x}",
            {"device_type": "memory", "reg": region(RAM_BASE, self.ram_bytes)},
        )
        cpus, interrupts = self._cpus(isa_extensions, mmu)
        root.children.append(cpus)
        soc, syscon = self._soc(interrupts)
        root.children.append(soc)
        for name, command in (("poweroff", 0x5555), ("reboot", 0x7777)):
            root.add(
                name,
                {"compatible": f"syscon-{name}", "regmap": syscon, "offset": 0, "value": command},
            )
        root.add(
            f"fw-cfg@{FW_CFG.base:x}",
            {"compatible": "qemu,fw-cfg-mmio", "reg": _reg(FW_CFG), "dma-coherent": True},
        )
        return root

    def _chosen(self, bootargs: str, initrd_range: tuple[int, int] | None, rng_seed: bytes) -> Node:
        chosen = Node("chosen", {"stdout-path": f"/soc/serial@{UART.base:x}"})
        if bootargs:
            chosen.properties["bootargs"] = bootargs
        if initrd_range:
            chosen.properties["linux,initrd-start"] = u64(initrd_range[0])
            chosen.properties["linux,initrd-end"] = u64(initrd_range[1])
        if rng_seed:
            chosen.properties["rng-seed"] = rng_seed
        return chosen

    def _cpus(self, extensions: Sequence[str], mmu: str | None) -> tuple[Node, list[Node]]:
        """The harts, and the interrupt controller of each."""
        cpus = Node(
            "cpus",
            {"#address-cells": 1, "#size-cells": 0, "timebase-frequency": TIMEBASE_HZ},
        )
        shared: dict[str, Value] = {
            "device_type": "cpu",
            "compatible": "riscv",
            "status": "okay",
            "riscv,isa": isa_string(extensions),
            "riscv,isa-base": "rv64i",
            "riscv,isa-extensions": _ordered(extensions),
        }
        for extension in ("zicbom", "zicboz", "zicbop"):
            if extension in extensions:
                shared[f"riscv,{extension[2:]}-block-size"] = CACHE_BLOCK_BYTES
        if mmu is not None:
            shared["mmu-type"] = f"riscv,{mmu}"
        interrupts = []
        cores = Node("cluster0")
        for hart in range(self.harts):
            cpu = cpus.add(f"cpu@{hart:x}", {"reg": hart} | shared)
            interrupts.append(
                cpu.add(
                    "interrupt-controller",
                    {
                        "compatible": "riscv,cpu-intc",
                        "#interrupt-cells": 1,
                        "interrupt-controller": True,
                    },
                )
            )
            cores.add(f"core{hart}", {"cpu": cpu})
        cpus.add("cpu-map").children.append(cores)
        return cpus, interrupts

    def _soc(self, harts: list[Node]) -> tuple[Node, Node]:
        """The devices, and the one among them that ends the machine."""
        soc = Node("soc", _two_cells() | {"compatible": "simple-bus", "ranges": True})
        syscon = soc.add(
            f"test@{TEST_FINISHER.base:x}",
            {
                "compatible": ["sifive,test1", "sifive,test0", "syscon"],
                "reg": _reg(TEST_FINISHER),
            },
        )
        soc.add(
            f"clint@{CLINT.base:x}",
            {
                "compatible": ["sifive,clint0", "riscv,clint0"],
                "reg": _reg(CLINT),
                "interrupts-extended": _wires(harts, M_SOFT, M_TIMER),
            },
        )
        if self.sswi:
            soc.add(
                f"sswi@{SSWI.base:x}",
                {
                    "compatible": "riscv,aclint-sswi",
                    "reg": _reg(SSWI),
                    "#interrupt-cells": 0,
                    "interrupt-controller": True,
                    "interrupts-extended": _wires(harts, S_SOFT),
                },
            )
        plic = soc.add(
            f"plic@{PLIC.base:x}",
            {
                "compatible": ["sifive,plic-1.0.0", "riscv,plic0"],
                "reg": _reg(PLIC),
                "#address-cells": 0,
                "#interrupt-cells": 1,
                "interrupt-controller": True,
                "interrupts-extended": _wires(harts, M_EXTERNAL, S_EXTERNAL),
                "riscv,ndev": SOURCES,
            },
        )

        def add(name: str, compatible: str, place: Place, extra: dict[str, Value]) -> None:
            properties: dict[str, Value] = {
                "compatible": compatible,
                "reg": _reg(place),
                "interrupt-parent": plic,
                "interrupts": place.irq,
            }
            soc.add(f"{name}@{place.base:x}", properties | extra)

        add("rtc", "google,goldfish-rtc", RTC, {})
        add("vmgenid", "microsoft,vmgenid", VMGENID, {})
        add("serial", "ns16550a", UART, {"clock-frequency": UART_CLOCK_HZ})
        for place in VIRTIO:
            add("virtio_mmio", "virtio,mmio", place, {})
        windows = [(p.base, p.size) for p in (PCI_ECAM, PCI_IO, PCI_MEMORY32, PCI_MEMORY64)]
        soc.children.append(pci_node(plic, PCI_ECAM.irq, *windows))
        return soc, syscon


def isa_string(extensions: Sequence[str]) -> str:
    """`riscv,isa`: `rv64`, single letters in canonical order, then the others after underscores."""
    ordered = _ordered(extensions)
    letters = "".join(e for e in ordered if len(e) == 1)
    return "_".join(["rv64" + letters, *(e for e in ordered if len(e) > 1)])


def _ordered(extensions: Sequence[str]) -> list[str]:
    letters = [e for e in extensions if len(e) == 1]
    if unknown := set(letters) - set(SINGLE_LETTERS):
        raise ConfigError(f"board: unknown extensions {sorted(unknown)}")
    return sorted(letters, key=SINGLE_LETTERS.index) + [e for e in extensions if len(e) > 1]


def _two_cells() -> dict[str, Value]:
    return {"#address-cells": 2, "#size-cells": 2}


def _reg(place: Place) -> tuple[int, int, int, int]:
    return region(place.base, place.size)


def _wires(harts: list[Node], *interrupts: int) -> list[int | Node]:
    """`interrupts-extended`: these interrupts of every hart."""
    return [cell for hart in harts for number in interrupts for cell in (hart, number)]
