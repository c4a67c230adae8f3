"""What a guest is told when it wakes: what is wrong in a moment it goes on from, and what its host wants.

In two steps: first what a user would see at once (clock, entropy, names, shares); then the shell at the
console is made to ask again, under the machine's own name; then comes what may take a slow processor a
while (keys for ssh, a new address).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kasou.control import warm
from kasou.control.assembly import Origin, machine_id
from kasou.control.vm_config import VmConfig
from kasou.errors import KasouError

if TYPE_CHECKING:
    from kasou.machine.machine import Machine

log = logging.getLogger("kasou.control")

ANSWER_SECONDS = 120.0
"""How long a guest may take until its agent answers for the first time."""
ENTER = b"\r"

Fields = Mapping[str, object]


def corrections(config: VmConfig, origin: Origin | None, is_first: bool) -> tuple[Fields, Fields]:
    """What the agent's `renew` is asked for now, and what later.

    `origin` is None after power-on; `is_first` says that this VM has never run before.
    """
    now: dict[str, object] = {}
    later: dict[str, object] = {}
    if origin is not None:
        now |= {"clock_ns": time.time_ns(), "entropy": _secret(config)}
        if origin.is_fork:
            now["machine_id"] = machine_id(config)
            if config.network is not None:  # where it has neighbours that it might be taken for
                now["mac"], later["network"] = config.mac, True
        if origin.is_warm:
            later["ssh_host_keys"] = True
    if is_first or (origin is not None and origin.is_fork):
        now["hostname"] = config.name
    if config.mounts and (origin is None or origin.is_warm):
        now["mounts"] = [[m.tag, m.target, m.read_only] for m in config.mounts]
    if is_first and (keys := warm.public_keys()):
        later["authorized_keys"] = keys
    return now, later


def _secret(config: VmConfig) -> str:
    """Bytes for the guest's generator, in hexadecimal; a function of the seed if there is one."""
    if config.seed is not None:
        return random.Random(f"{config.seed}/entropy").randbytes(32).hex()
    return os.urandom(32).hex()


async def renew(
    machine: Machine, config: VmConfig, origin: Origin | None, is_first: bool, prompts: bool
) -> None:
    """Tell the guest all that; `prompts` presses Enter at its console. What fails is logged."""
    from kasou.control.vsock_tunnel import ask_guest

    now, later = corrections(config, origin, is_first)
    try:
        for fields in (now, later):
            if fields:
                answer = await ask_guest(machine, "renew", fields, ANSWER_SECONDS, config.name)
                if failed := answer.get("failed"):
                    log.warning("%s: the guest could not correct: %s", config.name, failed)
            if prompts and fields is now:
                await asyncio.to_thread(machine.console_input, ENTER)
    except KasouError as problem:  # a guest whose agent has not started, or has ended
        log.warning("%s: not corrected: %s", config.name, problem)
