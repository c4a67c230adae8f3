import itertools
import struct

import pytest

from kasou.errors import ConfigError
from kasou.guest.test_elf import make_elf
from kasou.guest.test_kernel_image import make_image
from kasou.machine.boot import MIB, Bios, BootPlan, place

KERNEL = ("Image", make_image(size=MIB, image_size=3 * MIB))
INITRD = ("initrd", b"i" * 5000)


def tree(initrd: tuple[int, int] | None) -> bytes:
    return b"\xd0\x0d\xfe\xed" + repr(initrd).encode()


def spans(plan: BootPlan) -> list[tuple[int, int]]:
    return sorted((gpa, gpa + len(data)) for gpa, data in plan.loads)


@pytest.mark.parametrize("mib", [8, 16, 31, 64, 512, 3072, 8192])
@pytest.mark.parametrize("bios", [Bios.BUILTIN, ("fw", b"firmware")])
def test_nothing_overlaps_or_leaves_ram(mib: int, bios: Bios | tuple[str, bytes]) -> None:
    plan = place(ram_bytes=mib * MIB, device_tree=tree, kernel=KERNEL, initrd=INITRD, bios=bios)
    regions = spans(plan)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(regions))
    assert regions[0][0] >= 0x8000_0000
    assert regions[-1][1] <= 0x8000_0000 + mib * MIB
    assert plan.initrd_range is not None
    start, end = plan.initrd_range
    assert start % 4096 == 0
    assert end - start == 5000
    assert dict(plan.loads)[plan.dtb_gpa] == tree(plan.initrd_range)
    assert start >= 0x8020_0000 + 3 * MIB, "the kernel's bss is its own"


def test_built_in_sbi_starts_the_kernel_in_s_mode() -> None:
    plan = place(ram_bytes=64 * MIB, device_tree=tree, kernel=KERNEL)
    assert (plan.entry, plan.mode) == (0x8020_0000, "S")
    assert plan.registers(3) == {10: 3, 11: plan.dtb_gpa, 12: 0}
    assert plan.zeroes == ((0x8020_0000 + MIB, 2 * MIB),)


def test_firmware_learns_where_to_go_next() -> None:
    plan = place(ram_bytes=64 * MIB, device_tree=tree, kernel=KERNEL, bios=("fw", b"f" * 99))
    assert (plan.entry, plan.mode) == (0x8000_0000, "M")
    info = struct.unpack("<6Q", dict(plan.loads)[plan.registers(0)[12]])
    assert info == (0x4942534F, 2, 0x8020_0000, 1, 0, 0)


def test_bare_metal() -> None:
    elf = make_elf(memsz=100, symbols={"tohost": (0x8000_0040, 1)})
    plan = place(ram_bytes=MIB, device_tree=tree, kernel=("prog", elf), bios=Bios.NONE)
    assert (plan.entry, plan.mode, plan.tohost) == (0x8000_0000, "M", 0x8000_0040)
    assert plan.zeroes == ((0x8000_0010, 84),)
    flat = place(ram_bytes=MIB, device_tree=tree, kernel=("flat", b"\x13\0\0\0"), bios=Bios.NONE)
    assert (flat.entry, flat.tohost) == (0x8000_0000, None)


def test_vmlinux_is_moved_into_ram() -> None:
    elf = make_elf(paddr=0, vaddr=0xFFFF_FFFF_8000_0000)
    plan = place(ram_bytes=64 * MIB, device_tree=tree, kernel=("vmlinux", elf))
    assert plan.entry == 0x8020_0000
    assert spans(plan)[0][0] == 0x8020_0000


@pytest.mark.parametrize("kernel_mib", [3, 40, 100])
@pytest.mark.parametrize("initrd_mib", [0, 1, 30])
def test_too_little_memory_says_how_much_is_enough(kernel_mib: int, initrd_mib: int) -> None:
    def boot(mib: int) -> BootPlan:
        return place(
            ram_bytes=mib * MIB,
            device_tree=tree,
            kernel=("Image", make_image(size=kernel_mib * MIB, image_size=kernel_mib * MIB)),
            initrd=("initrd", bytes(initrd_mib * MIB)) if initrd_mib else None,
        )

    with pytest.raises(ConfigError, match="does not fit into 2 MiB") as caught:
        boot(2)
    mib = int(str(caught.value).rpartition("--memory ")[2].rstrip("M"))
    boot(mib)
    assert mib <= kernel_mib + initrd_mib + 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"bios": Bios.NONE}, "--kernel"),
        ({}, "no kernel"),
        ({"kernel": ("k", b"")}, "empty"),
        ({"kernel": ("k", b""), "bios": Bios.NONE}, "empty"),
        ({"kernel": ("k", make_elf(paddr=0x10000)), "bios": Bios.NONE}, "RAM starts at"),
        ({"kernel": ("k", make_elf(paddr=1 << 50)), "bios": Bios.NONE}, "no memory size"),
        ({"kernel": ("k", make_elf(memsz=1 << 62)), "bios": Bios.NONE}, "no memory size"),
        ({"kernel": ("k", make_elf()), "bios": ("fw", b"x" * 8)}, "overlaps fw"),
        ({"kernel": KERNEL, "bios": ("fw", b"x" * 3 * MIB)}, "overlaps"),
        ({"kernel": KERNEL, "initrd": ("initrd", b"")}, "initrd: an empty file"),
    ],
)
def test_what_cannot_work(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        place(ram_bytes=64 * MIB, device_tree=tree, **arguments)  # type: ignore[arg-type]
