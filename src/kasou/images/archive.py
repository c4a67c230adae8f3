"""Debian's archive: from a signature down to the bytes of a package.

    dists/SUITE/InRelease      signed by the archive's keys; names every index with its SHA-256
    .../Packages.xz            names every package with its SHA-256
    pool/....deb               an `ar` archive that holds the files in `data.tar.xz`

Each step is accepted only if the one above it vouches for it. A suite is looked for under its codename
(`trixie`), then under the other name that its Release gives it (`stable`), where the signed Release must
say the same codename: while a mirror is being updated, one of the two may still be whole.

What was verified is kept with the downloads, so that an image can be made again without a network.
(Debian wiki, "RepositoryFormat"; apt-secure(8))
"""

import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

from debian.arfile import ArError
from debian.deb822 import Deb822
from debian.debfile import DebError, DebFile

from kasou.errors import HostError
from kasou.images.fetch import fetch, read_url
from kasou.images.mirror import WAYS
from kasou.images.progress import Report, Total

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
RELEASE_LIMIT = 4 << 20
PROBE_SECONDS = 10.0
AT_ONCE = 6
"""Downloads at a time."""
KEPT = "InRelease"
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
    """What `InRelease` says: `files` maps an index's path to its SHA-256 and its size.

    `time` is the day of the release, in seconds since 1970; `suite` its other name, such as `stable`.
    """

    codename: str
    suite: str
    version: str
    time: int
    files: dict[str, tuple[str, int]]
    is_signed: bool


@dataclass(slots=True)
class Archive:
    """One suite on one mirror, with a directory for what is fetched from it; `signed` is `InRelease`."""

    mirror: str
    suite: str
    release: Release
    downloads: Path
    report: Report
    signed: bytes = b""
    _indices: dict[str, bytes] = field(default_factory=dict)

    def index(self, name: str) -> bytes:
        """The text of an index such as `main/binary-riscv64`, verified.

        Raises `IndexMismatch`, or `HostError` when it is not to be had.
        """
        text = self._indices.get(name)
        if text is None:
            text = self._indices[name] = self._fetch_index(name)
        return text

    def find(self, index: str, name: str) -> Package | None:
        """The package `name` in an index; raises as `index` does."""
        text = self.index(index)
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
        return self._fetch(package, self.report)

    def fetch_all(self, packages: Sequence[Package]) -> list[Path]:
        """The files of `packages`, in their order, `AT_ONCE` at a time; raises what the first raised."""
        total = Total(self.report, "packages", sum(package.size for package in packages))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                paths = list(pool.map(lambda package: self._fetch(package, total), packages))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        total.finish()
        return paths

    def _fetch(self, package: Package, report: Report) -> Path:
        return fetch(
            f"{self.mirror}/{package.filename}",
            self.downloads / package.filename.rpartition("/")[2],
            sha256=package.sha256,
            size=package.size,
            report=report,
        )

    def _fetch_index(self, index: str) -> bytes:
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
            text = b"\n" + lzma.decompress(target.read_bytes()) + b"\n\n"
            _keep(self.signed, self.downloads / f"{self.suite}_{KEPT}")
            return text
        except (OSError, lzma.LZMAError) as error:
            raise HostError(f"{target}: cannot be read ({error})") from None


def _no_pause(_seconds: float) -> None:
    """A mirror that has another index will have it a second later too."""


def _keep(signed: bytes, target: Path) -> None:
    part = target.with_name(target.name + ".new")
    part.write_bytes(signed)
    part.replace(target)


def open_archive(
    mirrors: Sequence[str], suite: str, downloads: Path, report: Report
) -> Iterator[Archive]:
    """The mirrors that answer and serve this suite of Debian, one after the other.

    Where none answers, what was kept of an earlier time is the last. Raises `HostError` at the end if
    there was nothing, or at once if a signature is bad.
    """
    problems = []
    found = False
    for mirror in mirrors:
        names = [suite]
        for name in names:
            url = f"{mirror}/dists/{name}/InRelease"
            try:
                signed = read_url(url, RELEASE_LIMIT, timeout=PROBE_SECONDS)
                if not signed.startswith(BEGIN.encode()):
                    raise HostError(f"{url}: not a Release file")
                release = read_release(signed, url, report)
                if release.codename != suite:
                    raise HostError(f"{url}: of {release.codename or 'no name'}, not {suite}")
            except BadSignature:
                raise
            except HostError as problem:
                problems.append(str(problem))
                continue
            if name == suite and release.suite not in ("", suite):
                names.append(release.suite)
            found = True
            yield Archive(mirror, name, release, downloads, report, signed)
    if found:
        return
    tried = f" ({'; '.join(problems)})" if problems else ""
    if mirrors:
        for path in sorted(downloads.glob(f"*_{KEPT}")):
            release = read_release(path.read_bytes(), str(path), report)
            if release.codename == suite:
                report.warn(f"no Debian mirror answers{tried}; trying with what was fetched before")
                name = path.name.removesuffix(f"_{KEPT}")
                yield Archive(mirrors[0], name, release, downloads, report, path.read_bytes())
                found = True
    if not found:
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
    return Release(
        stanza.get("Codename", ""), stanza.get("Suite", ""), stanza.get("Version", ""),
        _seconds(stanza.get("Date", "")), files, is_signed,
    )  # fmt: skip


def _seconds(date: str) -> int:
    """A Release file's date in seconds since 1970; 0 when it has none that can be read."""
    try:
        return int(parsedate_to_datetime(date).replace(tzinfo=UTC).timestamp())
    except (TypeError, ValueError):
        return 0


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
