"""Debian's archive: from a signature down to the bytes of a package.

    dists/SUITE/InRelease      signed by the archive's keys; names every index with its SHA-256
    .../Packages.xz            names every package with its SHA-256
    pool/....deb               an `ar` archive that holds the files in `data.tar.xz`

Each step is accepted only if the one above it vouches for it. (Debian wiki, "RepositoryFormat";
apt-secure(8))
"""

import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from debian.arfile import ArError
from debian.deb822 import Deb822
from debian.debfile import DebError, DebFile

from kasou.errors import HostError
from kasou.images.fetch import fetch, read_url
from kasou.images.mirror import WAYS
from kasou.images.progress import Report

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
RELEASE_LIMIT = 4 << 20
PROBE_SECONDS = 10.0
BEGIN, SIGNATURE = "-----BEGIN PGP SIGNED MESSAGE-----", "-----BEGIN PGP SIGNATURE-----"


class IndexMismatch(HostError):
    """An index is not the one that was signed: the mirror is being updated, or tampered with."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package as its index describes it; `filename` is relative to the mirror."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Release:
    """What `InRelease` says: `files` maps an index's path to its SHA-256 and its size."""

    codename: str
    version: str
    files: dict[str, tuple[str, int]]
    is_signed: bool


@dataclass(slots=True)
class Archive:
    """One suite on one mirror, with a directory for what is fetched from it."""

    mirror: str
    suite: str
    release: Release
    downloads: Path
    report: Report
    _indices: dict[str, bytes] = field(default_factory=dict)

    def find(self, index: str, name: str) -> Package | None:
        """The package `name` in an index such as `main/binary-riscv64`.

        Raises `IndexMismatch`, or `HostError` when the index is not to be had.
        """
        text = self._indices.get(index)
        if text is None:
            text = self._indices[index] = self._fetch_index(index)
        at = text.find(b"\nPackage: " + name.encode() + b"\n")
        if at < 0:
            return None
        stanza = Deb822(text[at + 1 : text.index(b"\n\n", at)])
        try:
            return Package(
                name, stanza["Version"], stanza["Filename"], stanza["SHA256"], int(stanza["Size"])
            )
        except (KeyError, ValueError) as error:
            raise HostError(f"{self.mirror}: {index} describes {name} badly ({error})") from None

    def fetch(self, package: Package) -> Path:
        """The package's file, verified."""
        return fetch(
            f"{self.mirror}/{package.filename}",
            self.downloads / package.filename.rpartition("/")[2],
            sha256=package.sha256,
            size=package.size,
            report=self.report,
        )

    def _fetch_index(self, index: str) -> bytes:
        """An index's text, with a newline before and a blank line after it."""
        path = f"{index}/Packages.xz"
        if path not in self.release.files:
            raise HostError(f"{self.mirror}: {self.suite} has no {path}")
        sha256, size = self.release.files[path]
        base = f"{self.mirror}/dists/{self.suite}/{index}"
        target = self.downloads / f"{self.suite}_{path.replace('/', '_')}"
        problem = None
        # By its hash first: while a mirror is being updated, that name still fits InRelease.
        for url in (f"{base}/by-hash/SHA256/{sha256}", f"{base}/Packages.xz"):
            try:
                fetch(url, target, sha256=sha256, size=size, report=self.report, sleep=_no_pause)
                break
            except HostError as error:
                problem = error
        else:
            raise IndexMismatch(
                f"{problem}: not the index that the signed Release names"
                " (is the mirror being updated? try again later, or another mirror)"
            )
        try:
            return b"\n" + lzma.decompress(target.read_bytes()) + b"\n\n"
        except (OSError, lzma.LZMAError) as error:
            raise HostError(f"{target}: cannot be read ({error})") from None


def _no_pause(_seconds: float) -> None:
    """A mirror that has another index will have it a second later too."""


def open_archive(
    mirrors: Sequence[str], suite: str, downloads: Path, report: Report
) -> Iterator[Archive]:
    """The mirrors that answer and serve this suite of Debian, one after the other.

    Raises `HostError` at the end if there was none, or at once if a signature is bad.
    """
    problems = []
    found = False
    for mirror in mirrors:
        url = f"{mirror}/dists/{suite}/InRelease"
        try:
            text = read_url(url, RELEASE_LIMIT, timeout=PROBE_SECONDS)
            if not text.startswith(BEGIN.encode()):
                raise HostError(f"{url}: not a Release file")
            release = read_release(text, url, report)
        except BadSignature:
            raise
        except HostError as problem:
            problems.append(str(problem))
            continue
        found = True
        yield Archive(mirror, suite, release, downloads, report)
    if not found:
        tried = f" ({'; '.join(problems)})" if problems else ""
        raise HostError(f"no Debian mirror answers{tried}: {WAYS}")


class BadSignature(HostError):
    """A Release file that the archive's keys did not sign."""


def read_release(signed: bytes, url: str, report: Report) -> Release:
    """Verify and parse an `InRelease` file."""
    is_signed = verify(signed, url, report)
    stanza = Deb822(signed_text(signed, url))
    if stanza.get("Origin") != "Debian":
        raise HostError(f"{url}: of {stanza.get('Origin', 'unknown origin')}, not Debian")
    files = {}
    for line in stanza.get("SHA256", "").splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdigit():
            files[words[2]] = (words[0], int(words[1]))
    if not files:
        raise HostError(f"{url}: names no file with a SHA-256")
    return Release(stanza.get("Codename", ""), stanza.get("Version", ""), files, is_signed)


def signed_text(signed: bytes, url: str) -> str:
    """What the signature covers, and nothing before or behind it. (RFC 9580, 7)"""
    lines = signed.decode(errors="replace").splitlines()
    try:
        start, end = lines.index(""), lines.index(SIGNATURE)
    except ValueError:
        raise HostError(f"{url}: a signed file without a signature") from None
    if lines[0] != BEGIN or not all(line.startswith("Hash: ") for line in lines[1:start]):
        raise HostError(f"{url}: not a plain signed file")
    return "\n".join(line.removeprefix("- ") for line in lines[start + 1 : end]) + "\n"


def verify(signed: bytes, url: str, report: Report, keyrings: Sequence[Path] = KEYRINGS) -> bool:
    """Whether the archive's signature was checked; a warning says so if it could not be.

    Raises `BadSignature` when it was checked and is not good. As apt does, one good signature is
    enough if the others are by keys that this host does not have yet.
    """
    gpgv = shutil.which("gpgv")
    keyring = next((path for path in keyrings if path.exists()), None)
    if gpgv is None or keyring is None:
        missing = "gpgv" if gpgv is None else "the package debian-archive-keyring"
        report.warn(f"the signature of {url} is not checked: this host lacks {missing}")
        return False
    with tempfile.NamedTemporaryFile(suffix=".InRelease") as file:
        file.write(signed)
        file.flush()
        try:
            result = subprocess.run(
                [gpgv, "--status-fd", "1", "--keyring", str(keyring), file.name],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostError(f"{gpgv}: cannot check the signature ({error})") from None
    states = {
        line.split()[1] for line in result.stdout.splitlines() if line.startswith("[GNUPG:] ")
    }
    if "BADSIG" in states or not {"GOODSIG", "VALIDSIG"} <= states:
        why = "no key that signed it is in" if "NO_PUBKEY" in states else "it does not fit"
        raise BadSignature(f"{url}: the signature is not good: {why} {keyring}")
    return True


def read_deb(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The regular files of a `.deb` or `.udeb` whose path (no leading `./`) is wanted."""
    found = {}
    try:
        with DebFile(str(path)) as deb, deb.data.tgz() as tar:
            for member in tar:
                name = member.name.removeprefix("./").lstrip("/")
                if member.isfile() and wanted(name):
                    file = tar.extractfile(member)
                    assert file is not None, "a regular file has content"
                    found[name] = file.read()
    except (
        ArError,
        DebError,
        tarfile.TarError,
        lzma.LZMAError,
        OSError,
        EOFError,
        ValueError,
    ) as error:
        raise HostError(f"{path}: not a Debian package that can be read ({error})") from None
    return found
