"""What images there are, by the names that people type."""

from dataclasses import dataclass

from kasou.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an image is made from Debian's packages.

    `installer` is the package whose files carry the kernel and its modules of a guest that lives in
    memory; without one the image is a whole system on a disk.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    suite: str
    append: str
    installer: str = ""


SYSTEM_APPEND = "console=ttyS0 quiet systemd.ssh_auto=no"
"""Without ssh over vsock of systemd's own: it asks for the socket device before its driver is there."""

DEBIAN_MINIMAL = Recipe(
    name="debian:minimal",
    aliases=("minimal",),
    description="Debian 13's own kernel, with a root shell in memory",
    suite="trixie",
    append="console=ttyS0",
    installer="debian-installer-13-netboot-riscv64",
)
DEBIAN_TRIXIE = Recipe(
    name="debian:trixie",
    aliases=("debian", "debian:13"),
    description="Debian 13 with systemd, apt, ssh and a network",
    suite="trixie",
    append=SYSTEM_APPEND,
)
DEBIAN_FORKY = Recipe(
    name="debian:forky",
    aliases=("debian:14",),
    description="Debian 14 as it will be (testing)",
    suite="forky",
    append=SYSTEM_APPEND,
)
DEBIAN_SID = Recipe(
    name="debian:sid",
    aliases=("debian:unstable",),
    description="Debian unstable, as it is today",
    suite="sid",
    append=SYSTEM_APPEND,
)
RECIPES = (DEBIAN_TRIXIE, DEBIAN_MINIMAL, DEBIAN_FORKY, DEBIAN_SID)


def recipe(name: str) -> Recipe:
    """The recipe called `name`. Raises `ConfigError` with the names there are."""
    for known in RECIPES:
        if name == known.name or name in known.aliases:
            return known
    names = ", ".join(sorted(n for known in RECIPES for n in (known.name, *known.aliases)))
    raise ConfigError(f"no image is called {name}; there are {names}")
