"""The interpreter's object: built once by LLVM, then read from the cache.

The key is a hash of everything the object depends on: the semantic texts and the emitter's sources,
llvmlite (which brings its LLVM), and the host's CPU and features. The file carries the hash of its
own content, so a damaged one is built anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
from pathlib import Path

from kasou.engine.loader import LoadedObject
from kasou.errors import HostError
from kasou.paths import cache_directory

OPTIMIZATION = 1
SOURCES = ("isa", "engine")


def _cpu() -> bytes:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        import platform

        return platform.processor().encode()
    wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    lines = [line for line in text.split("\n\n")[0].splitlines() if line.startswith(wanted)]
    return "\n".join(lines).encode()


def _llvmlite() -> bytes:
    spec = importlib.util.find_spec("llvmlite")
    if spec is None or spec.origin is None:
        raise HostError("llvmlite is not installed: pip install llvmlite")
    folder = Path(spec.origin).parent
    library = sorted((folder / "binding").glob("libllvmlite.*"))
    sizes = [str(p.stat().st_size) for p in library]
    return (folder / "_version.py").read_bytes() + " ".join(sizes).encode()


def key() -> str:
    """The hash that names the object."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for part in SOURCES:
        for path in sorted((package / part).rglob("*.py")):
            if not path.name.startswith("test_"):
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for piece in (_llvmlite(), _cpu(), os.uname().machine.encode(), bytes([OPTIMIZATION])):
        digest.update(piece + b"\0")
    return digest.hexdigest()[:32]


def build() -> bytes:
    """Compile the interpreter with LLVM."""
    if os.uname().machine != "x86_64":
        raise HostError(
            f"the interpreter knows x86-64 hosts only, not {os.uname().machine}: use --engine reference"
        )
    import llvmlite.binding as llvm

    from kasou.engine.interpreter_ir import write_module

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(write_module(llvm.get_default_triple())[0])
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=OPTIMIZATION,
        reloc="pic",
        codemodel="small",
    )
    return bytes(machine.emit_object(module))


_loaded: LoadedObject | None = None


def load() -> LoadedObject:
    """The interpreter's code in memory, from the cache when its key matches."""
    global _loaded
    if _loaded is None:
        path = cache_directory() / "engine" / f"interpreter-{key()}.o"
        data = _read(path)
        if data is None:
            data = build()
            _write(path, data)
        _loaded = LoadedObject(data)
    return _loaded


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == digest else None


def _write(path: Path, data: bytes) -> None:
    """Replace the file atomically; a cache that cannot be written only costs time."""
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("interpreter-*.o"):
            if time.time() - old.stat().st_mtime > 30 * 86400:
                old.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.replace(name, path)
    except OSError:
        pass
