"""Images that have been made, in the cache directory.

    images/debian-trixie.json               what it is, and which directory holds it
    images/debian-trixie-4f1c09ab2e77/      kernel, initrd, perhaps a disk; never changed once named
    downloads/                              packages, until an image is made of them

The JSON file is replaced in one step after the directory is complete, so whoever reads it finds a
whole image, the old or the new.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kasou.errors import HostError
from kasou.paths import cache_directory

KERNEL, INITRD, DISK = "Image", "initrd.cpio", "disk.qcow2"


@dataclass(frozen=True, slots=True)
class Image:
    """An image's description, as kept in JSON.

    `created` is an ISO date and time (UTC), `size` in bytes. `packages` maps names to versions.
    `missing` says what the image lacks against its recipe, empty if nothing; `signed` whether
    the archive's signature was checked. `inputs` is a digest of what it was made from. `has_disk` and
    `agent` say whether it is a system on a disk and has kasou's agent.
    """

    name: str
    description: str
    created: str
    size: int
    kernel_version: str
    debian_version: str
    packages: dict[str, str]
    signed: bool
    missing: str
    append: str
    inputs: str
    directory: str
    has_disk: bool = False
    agent: bool = False

    @property
    def kernel(self) -> Path:
        """The kernel's file."""
        return images_directory() / self.directory / KERNEL

    @property
    def initrd(self) -> Path:
        """The initial RAM file system's file."""
        return images_directory() / self.directory / INITRD

    @property
    def disk(self) -> Path | None:
        """The disk's file (qcow2), a base for overlays, never written; None for a guest in memory."""
        return images_directory() / self.directory / DISK if self.has_disk else None


def images_directory() -> Path:
    """Where images are; it need not exist."""
    return cache_directory() / "images"


def downloads_directory() -> Path:
    """Where packages arrive; it need not exist."""
    return cache_directory() / "downloads"


def load(name: str) -> Image | None:
    """The image `name` if it is here and whole."""
    return _read(_description(name))


def installed() -> list[Image]:
    """All images that are here and whole, by name."""
    found = (_read(path) for path in sorted(images_directory().glob("*.json")))
    return [image for image in found if image is not None]


def store(image: Image, files: Mapping[str, bytes | Path]) -> Image:
    """Keep an image; its `size` and `directory` are filled in. Raises `HostError`.

    A file that is given by its path is moved, so it should be in `images_directory`.
    """
    root = images_directory()
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        size = 0
        for name in sorted(files):
            content = files[name]
            digest.update(_digest(content))
            size += content.stat().st_size if isinstance(content, Path) else len(content)
        directory = f"{_stem(image.name)}-{digest.hexdigest()[:12]}"
        image = replace(image, directory=directory, size=size)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
        try:
            fresh.chmod(0o755)
            for name, content in files.items():
                if isinstance(content, Path):
                    os.replace(content, fresh / name)
                else:
                    (fresh / name).write_bytes(content)
            shutil.rmtree(root / directory, ignore_errors=True)
            os.replace(fresh, root / directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        text = fresh.with_suffix(".json")
        text.write_text(json.dumps(asdict(image), indent=2) + "\n")
        os.replace(text, _description(image.name))
        for other in root.glob(f"{_stem(image.name)}-{'[0-9a-f]' * 12}"):
            if other.name != directory:
                shutil.rmtree(other, ignore_errors=True)
    return image


def _digest(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def workshop(name: str) -> Iterator[Path]:
    """A directory to make the image `name` in; what a killed build left in it is removed first.

    For the holder of `only_one`. Raises `HostError`.
    """
    path = images_directory() / f".make-{_stem(name)}"
    with _writing(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Held by the process that makes an image; others wait, and then find it made."""
    root = images_directory()
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{_stem(name)}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> Image | None:
    try:
        image = Image(**json.loads(path.read_text()))
        parts = (image.kernel, image.initrd, image.disk)
        present = sum(part.stat().st_size for part in parts if part is not None)
    except (OSError, ValueError, TypeError):
        return None
    return image if present == image.size else None


def _description(name: str) -> Path:
    return images_directory() / f"{_stem(name)}.json"


def _stem(name: str) -> str:
    return name.replace(":", "-")


@contextmanager
def _writing(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"{error.filename or where}: cannot be written ({error.strerror});"
            " KASOU_HOME chooses another place"
        ) from None
