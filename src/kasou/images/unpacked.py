"""A root file system of unpacked packages, as one archive: what dpkg has left to do is `--configure`.

The packages' own archives are strung together with owners, modes and links as they are, and beside
them dpkg's records are written as `dpkg --unpack` would have: `info/PACKAGE.list` and the scripts, and
a `status` in which every package is `unpacked`. Nothing is executed, and no root is needed.
(dpkg(1), deb(5); dpkg's internals/db)
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from debian.arfile import ArError
from debian.deb822 import Deb822
from debian.debfile import DebError, DebFile

from kasou.errors import HostError

EXCLUDED = re.compile(
    r"usr/share/(man|info|locale|lintian|linda|bug)/|usr/share/doc/[^/]+/(?!copyright$)"
    r"|boot/(vmlinu|System\.map)"
)
"""What is not put into the image: pages that nobody reads in a machine of this kind, and the kernel,
which kasou loads by itself."""
PATH_EXCLUDES = (
    "".join(
        f"path-exclude=/usr/share/{one}\n"
        for one in ("man/*", "info/*", "locale/*", "lintian/*", "linda/*", "bug/*", "doc/*/*")
    )
    + "path-include=/usr/share/doc/*/copyright\n"
)
"""The same for dpkg, so that packages installed later are treated alike."""
SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "config")
RECORDS = ("md5sums", "shlibs", "symbols", "conffiles", "triggers", "templates", *SCRIPTS)
INFO = "var/lib/dpkg/info"
SECTOR = 512


class Unpacked:
    """Writes the archive to `file`; `time` (seconds since 1970) dates what is not a package's."""

    def __init__(self, file: IO[bytes], time: int) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.GNU_FORMAT)
        self._file = file
        self._time = time
        self._directories: set[str] = set()
        self._status: list[str] = []
        self.bytes = 0

    def add(self, deb: Path) -> None:
        """One more package. Raises `HostError` when it cannot be read."""
        try:
            with DebFile(str(deb)) as opened:
                self._add_control(opened, self._add_data(opened))
        except (
            ArError, DebError, tarfile.TarError, lzma.LZMAError, EOFError, KeyError, ValueError,
        ) as error:  # fmt: skip
            raise HostError(f"{deb}: not a Debian package that can be read ({error})") from None

    def add_stanza(self, name: str, stanza: str) -> None:
        """A package without files, which counts as installed."""
        self.file(f"{INFO}/{name}.list", "/.\n")
        self.file(f"{INFO}/{name}.md5sums", "")
        self._status.append(stanza)

    def file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """A file of ours, owned by root."""
        content = data.encode() if isinstance(data, str) else data
        member = self._member(path, mode)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        self.bytes += len(content)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link of ours."""
        member = self._member(path, 0o777)
        member.type, member.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(member)

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory of ours."""
        member = self._member(path, mode)
        member.type = tarfile.DIRTYPE
        self._tar.addfile(member)

    def close(self) -> None:
        """Finish dpkg's records and the archive; its length becomes whole sectors."""
        self.file("var/lib/dpkg/status", "\n".join(self._status))
        self.file("var/lib/dpkg/available", "")
        self.file(f"{INFO}/format", "1\n")
        self._tar.close()
        self._file.write(bytes(-self._file.tell() % SECTOR))

    def _member(self, path: str, mode: int) -> tarfile.TarInfo:
        member = tarfile.TarInfo(f"./{path}")
        member.mode, member.mtime = mode, self._time
        return member

    def _add_data(self, opened: DebFile) -> list[str]:
        """The package's files; returns all their names, the excluded ones too, as dpkg lists them."""
        names = []
        with opened.data.tgz() as source:
            for member in source:
                path = member.name.removeprefix("./").rstrip("/")
                names.append(f"/{path}" if path else "/.")
                if not member.isdir() and EXCLUDED.match(path):
                    continue
                if member.isdir() and (path in self._directories or EXCLUDED.match(f"{path}/")):
                    continue
                self._directories.add(path)
                member.name = f"./{path}"
                self._tar.addfile(member, source.extractfile(member) if member.isfile() else None)
                self.bytes += member.size
        return names

    def _add_control(self, opened: DebFile, names: Sequence[str]) -> None:
        control: dict[str, bytes] = {}
        with opened.control.tgz() as source:
            for member in source:
                file = source.extractfile(member) if member.isfile() else None
                if file is not None:
                    control[member.name.removeprefix("./")] = file.read()
        text = control["control"].decode()
        fields = Deb822(text)
        name = fields["Package"]
        if fields.get("Multi-Arch") == "same":
            name = f"{name}:{fields['Architecture']}"
        prefix = f"{INFO}/{name}"
        self.file(f"{prefix}.list", "".join(f"{name}\n" for name in names))
        for kind in RECORDS:
            if kind in control:
                self.file(f"{prefix}.{kind}", control[kind], 0o755 if kind in SCRIPTS else 0o644)
        self._status.append(_stanza(text, control.get("conffiles", b"")))


def _stanza(control: str, conffiles: bytes) -> str:
    """A package's paragraph of `status`."""
    first, *rest = control.rstrip("\n").split("\n")
    lines = [first, "Status: install ok unpacked", *rest]
    files = [line.strip() for line in conffiles.decode().split("\n")]
    # "remove-on-upgrade" is the only flag there is, and is not for a file that comes with it.
    files = [one for one in files if one and not one.startswith("remove-on-upgrade")]
    if files:
        lines += ["Conffiles:", *(f" {one} newconffile" for one in files)]
    return "\n".join(lines) + "\n"


def write(
    target: Path,
    debs: Sequence[Path],
    files: Mapping[str, tuple[str, int]],
    stanzas: Mapping[str, str],
    time: int,
    advance: Callable[[int, int], None],
) -> None:
    """The archive of `debs`, of `files` (path to text and mode) and packages that are `stanzas` only.

    `base-files` comes first: it brings the links from /bin, /sbin and /lib into /usr. A mode of 0 makes
    a symbolic link to the text. `advance` is called with packages done and in all.
    """
    first = sorted(debs, key=lambda deb: (not deb.name.startswith("base-files_"), deb.name))
    with target.open("wb") as file:
        out = Unpacked(file, time)
        for done, deb in enumerate(first):
            advance(done, len(first))
            out.add(deb)
        for path, (text, mode) in files.items():
            if mode == 0:
                out.symlink(path, text)
            else:
                out.file(path, text, mode)
        for name, stanza in stanzas.items():
            out.add_stanza(name, stanza)
        out.close()
        advance(len(first), len(first))
