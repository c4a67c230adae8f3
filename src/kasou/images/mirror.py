"""Where Debian's archive is reached from here.

In this order: the `--mirror` argument, the environment's `KASOU_MIRROR`, the host's apt sources.
No host name stands in this program. Of apt's sources those are tried that may hold Debian's `main`;
the archive's own `Release` file says whether one really does.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from kasou.errors import ConfigError

VARIABLE = "KASOU_MIRROR"
SCHEMES = ("http", "https", "file")
WAYS = (
    "give one with --mirror URL, set KASOU_MIRROR=URL, or run where apt's sources name one;"
    " `kasou run tiny` needs no network"
)


def candidates(
    argument: str | None = None,
    environ: Mapping[str, str] = os.environ,
    apt: Path = Path("/etc/apt"),
) -> list[str]:
    """Base addresses to try, best first, without a trailing slash; empty when none is known.

    An address named by the person is the only one. Raises `ConfigError` when it is not one.
    """
    for origin, given in (("--mirror", argument), (VARIABLE, environ.get(VARIABLE))):
        if given:
            if urlsplit(given).scheme not in SCHEMES:
                raise ConfigError(
                    f"{origin} {given}: not an address; expected http://HOST/debian or the like"
                )
            return [given.rstrip("/")]
    found = dict.fromkeys(_apt_sources(apt))
    return sorted(found, key=lambda base: urlsplit(base).path.rpartition("/")[2] != "debian")


def _apt_sources(apt: Path) -> Iterator[str]:
    """Addresses of binary packages' sources with a component `main`. (sources.list(5))"""
    directory = apt / "sources.list.d"
    for path in (apt / "sources.list", *sorted(directory.glob("*.list"))):
        for line in _text(path).splitlines():
            yield from _one_line(line)
    for path in sorted(directory.glob("*.sources")):
        for stanza in _text(path).split("\n\n"):
            yield from _stanza(stanza)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _one_line(line: str) -> Iterator[str]:
    """`deb [ options ] uri suite component ...`."""
    words = line.partition("#")[0].split()
    if len(words) < 4 or words[0] != "deb":
        return
    rest = words[1:]
    if rest[0].startswith("["):
        closing = next((i for i, word in enumerate(rest) if word.endswith("]")), None)
        if closing is None:
            return
        rest = rest[closing + 1 :]
    if len(rest) >= 3 and _may_be_debian(rest[0], rest[1:2], rest[2:]):
        yield rest[0].rstrip("/")


def _stanza(text: str) -> Iterator[str]:
    """The deb822 form: `Types:`, `URIs:`, `Suites:`, `Components:`, perhaps `Enabled: no`."""
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and name:
            fields[name] += " " + line.strip()
        elif ":" in line:
            key, _, value = line.partition(":")
            name = key.strip().lower()
            fields[name] = value.strip()
    if "deb" not in fields.get("types", "").split():
        return
    if fields.get("enabled", "yes").lower() in ("no", "false", "off", "0", "without", "disable"):
        return
    suites, components = fields.get("suites", "").split(), fields.get("components", "").split()
    for uri in fields.get("uris", "").split():
        if _may_be_debian(uri, suites, components):
            yield uri.rstrip("/")


def _may_be_debian(uri: str, suites: list[str], components: list[str]) -> bool:
    if urlsplit(uri).scheme not in SCHEMES or "main" not in components:
        return False
    return not all("security" in suite for suite in suites)
