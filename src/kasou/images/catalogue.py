"""What images there are, by the names that people type."""

from dataclasses import dataclass

from kasou.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an image is made from Debian's packages.

    `installer` is the package whose files carry the kernel and its modules.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    suite: str
    installer: str
    append: str


DEBIAN_TRIXIE = Recipe(
    name="debian:trixie",
    aliases=("debian", "debian:13"),
    description="Debian 13: its own kernel, and a root shell in memory",
    suite="trixie",
    installer="debian-installer-13-netboot-riscv64",
    append="console=ttyS0",
)
RECIPES = (DEBIAN_TRIXIE,)


def recipe(name: str) -> Recipe:
    """The recipe called `name`. Raises `ConfigError` with the names there are."""
    for known in RECIPES:
        if name == known.name or name in known.aliases:
            return known
    names = ", ".join(sorted(n for known in RECIPES for n in (known.name, *known.aliases)))
    raise ConfigError(f"no image is called {name}; there are {names}")
