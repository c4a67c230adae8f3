"""Which packages a system needs: an index read as a table, and dependencies resolved on it.

A relation such as `mail-transport-agent | postfix (>= 3)` is met by the first alternative that can be:
a package of that name and version, or else one that provides the name. That is apt's rule for a fresh
system where nothing conflicts, which is how Debian's own priorities are kept. (Debian Policy, 7)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from debian.debian_support import Version

from kasou.errors import HostError
from kasou.images.archive import Package

NEEDED = ("Pre-Depends", "Depends")
_FIELDS = frozenset(
    (
        "Package", "Version", "Filename", "SHA256", "Size", "Provides", "Essential", "Priority",
        "Installed-Size", "Multi-Arch", *NEEDED,
    )
)  # fmt: skip
_ALTERNATIVE = re.compile(
    r"\s*(?P<name>[a-z0-9][a-z0-9+.-]*)(?::[a-z0-9]+)?"
    r"\s*(?:\((?P<relation><<|<=|=|>=|>>)\s*(?P<version>[^)\s]+)\s*\))?\s*"
)
_HOLDS = {
    "<<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "=": lambda a, b: a == b,
    ">=": lambda a, b: a >= b,
    ">>": lambda a, b: a > b,
}


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to meet a relation: a name, and what its version has to be."""

    name: str
    relation: str = ""
    version: str = ""

    def admits(self, version: str) -> bool:
        """Whether a package of this version will do."""
        if not self.relation:
            return True
        return bool(version) and _HOLDS[self.relation](Version(version), Version(self.version))


def alternatives(text: str) -> list[list[Alternative]]:
    """The relations of a field, each a list of alternatives. Raises `HostError` for nonsense."""
    relations = []
    for relation in filter(str.strip, text.split(",")):
        ways = []
        for one in relation.split("|"):
            found = _ALTERNATIVE.fullmatch(one)
            if found is None:
                raise HostError(f"{relation.strip()!r:.80}: not a relation between packages")
            ways.append(Alternative(found["name"], found["relation"] or "", found["version"] or ""))
        relations.append(ways)
    return relations


@dataclass(slots=True)
class Index:
    """The packages of one index, by name, and by what they provide: (package, version or "")."""

    fields: dict[str, dict[str, str]] = field(default_factory=dict)
    providers: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def package(self, name: str) -> Package:
        """Where to fetch `name`. Raises `HostError` when the index describes it badly."""
        stanza = self.fields[name]
        try:
            return Package(
                name, stanza["Version"], stanza["Filename"], stanza["SHA256"], int(stanza["Size"])
            )
        except (KeyError, ValueError) as error:
            raise HostError(f"the index describes {name} badly ({error})") from None

    @property
    def base(self) -> list[str]:
        """The essential and required packages, in the index's order."""
        return [
            name
            for name, stanza in self.fields.items()
            if stanza.get("Essential") == "yes" or stanza.get("Priority") == "required"
        ]

    def resolve(self, wanted: Iterable[str], without: Iterable[str] = ()) -> list[str]:
        """`wanted` and all that they need, in name order.

        Names in `without` count as met though they are left out. Raises `HostError` when something
        cannot be met.
        """
        chosen: dict[str, None] = {}
        left_out = frozenset(without)
        queue = [*wanted]
        while queue:
            name = queue.pop(0)
            if name in chosen:
                continue
            if name not in self.fields:
                raise HostError(f"no package is called {name}")
            chosen[name] = None
            for key in NEEDED:
                for ways in alternatives(self.fields[name].get(key, "")):
                    if any(way.name in left_out for way in ways):
                        continue
                    if not any(self._met(way, chosen) for way in ways):
                        queue.append(self._choose(ways, name))
        return sorted(chosen)

    def _met(self, way: Alternative, chosen: dict[str, None]) -> bool:
        if way.name in chosen and way.admits(self.fields[way.name].get("Version", "")):
            return True
        return any(
            provider in chosen and way.admits(version)
            for provider, version in self.providers.get(way.name, ())
        )

    def _choose(self, ways: list[Alternative], needed_by: str) -> str:
        for way in ways:
            stanza = self.fields.get(way.name)
            if stanza is not None and way.admits(stanza.get("Version", "")):
                return way.name
            for provider, version in self.providers.get(way.name, ()):
                if way.admits(version):
                    return provider
        names = " | ".join(way.name for way in ways)
        raise HostError(f"{needed_by}: needs {names}, which the archive does not have")


def read_index(text: bytes) -> Index:
    """An index file as a table."""
    index = Index()
    for stanza in _stanzas(text.decode(errors="replace")):
        name = stanza.get("Package", "")
        known = index.fields.get(name)
        if known is not None and Version(known["Version"]) >= Version(stanza.get("Version", "0")):
            continue
        index.fields[name] = stanza
        for ways in alternatives(stanza.get("Provides", "")):
            provided = (name, ways[0].version)
            index.providers.setdefault(ways[0].name, []).append(provided)
    return index


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """The fields that matter here; none of them is ever folded over lines."""
    stanza: dict[str, str] = {}
    for line in text.split("\n"):
        if not line:
            if stanza:
                yield stanza
                stanza = {}
            continue
        key, _, value = line.partition(": ")
        if key in _FIELDS:
            stanza[key] = value
    if stanza:
        yield stanza
