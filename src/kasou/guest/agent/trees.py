"""Where files are put to and taken from, and the `tar` that does it; what is mounted where.
Part of the agent's script.

A path that ends in a slash means the contents of a directory, as for rsync; otherwise a file or
tree lands inside a directory that is there, or under the new name, as for cp.
"""

import errno
import os

from kasou.guest.agent.spawn import Failure

_TAR = "/bin/tar"
_MSIZE = 512_000
"""What Linux's virtio transport carries at most: 125 pages."""


def put_command(path: str, name: str, contents: bool) -> tuple[list[str], str]:
    """How to unpack into `path`, and what the archive must call the file or tree.

    With `contents`, `path` is the directory for what the archive holds, whose name is `.`.
    Directories that are missing on the way are made. Raises `OSError`.
    """
    if contents:
        directory, name = path, "."
    elif path.endswith("/") or os.path.isdir(path):
        directory = path
    else:
        directory, name = os.path.split(path)
    directory = directory or "/"
    os.makedirs(directory, exist_ok=True)
    return [_TAR, "-x", "-p", "--numeric-owner", "-f", "-", "-C", directory], name


def get_command(path: str, contents: bool) -> tuple[list[str], dict[str, object]]:
    """How to pack `path`; what it is called, its name in the archive, whether it is a directory.

    A symbolic link that `path` itself is, is followed; links below are kept. Raises `Failure`.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real):
        raise Failure(f"{path}: {os.strerror(errno.ENOENT)}", "ENOENT")
    is_directory = os.path.isdir(real)
    if contents and not is_directory:
        raise Failure(f"{path}: {os.strerror(errno.ENOTDIR)}", "ENOTDIR")
    directory, root = (real, ".") if contents else os.path.split(real)
    info: dict[str, object] = {
        "name": os.path.basename(path.rstrip("/")) or "/",
        "root": root or ".",
        "is_directory": is_directory,
    }
    tar = [_TAR, "-c", "--format=gnu", "--numeric-owner", "-f", "-", "-C", directory or "/"]
    return [*tar, f"./{root}" if root not in ("", ".") else "."], info


def mount_command(tag: str, path: str, read_only: bool) -> list[str]:
    """How to mount a directory that the host shares; nothing if it is mounted there already.

    The mount point is made. Raises `OSError`.
    """
    os.makedirs(path, exist_ok=True)
    escaped = os.path.realpath(path)
    for character in "\\ \t\n":  # proc(5)
        escaped = escaped.replace(character, f"\\{ord(character):03o}")
    with open("/proc/self/mounts", errors="surrogateescape") as mounts:
        if any(line.split(" ")[:3] == [tag, escaped, "9p"] for line in mounts):
            return ["/bin/true"]
    options = f"trans=virtio,version=9p2000.L,msize={_MSIZE},{'ro' if read_only else 'rw'}"
    return ["/bin/mount", "-t", "9p", "-o", options, tag, path]
