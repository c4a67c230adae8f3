"""What a VM's user does inside the guest: run commands, wait for things, copy files.

`Guest` is the part of `VM` that talks to the agent. The verbs `succeed`, `fail`, `wait_for_unit`,
`wait_until_succeeds` mean what they mean in NixOS tests.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kasou.aio.copies import get, put
from kasou.aio.process import AGENT_SECONDS, Process, ask, begin
from kasou.aio.result import CommandError, Result, TimedOut, shown
from kasou.errors import ConfigError
from kasou.guest.agent.client import ExecClient

if TYPE_CHECKING:
    from kasou.control.client import ControlClient

Command = str | Sequence[str]
"""A string for `sh -c`, a list for no shell."""
POLL_SECONDS = 0.25


class Guest:
    """Commands in the guest of the VM behind `client`."""

    @property
    def client(self) -> ControlClient:
        """The VM's control socket."""
        raise AssertionError("a VM has one")

    # ------------------------------------------------------------------ commands
    async def popen(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: tuple[int, int] | None = None,
        stdin: bool = True,
    ) -> Process:
        """Start a command and talk to it; `tty` (columns, rows) gives it a terminal.

        Waits for the guest's agent if the guest is still starting.
        """
        client = ExecClient(argv(command), env=env, cwd=cwd, user=user, tty=tty, stdin=stdin)
        return await begin(self.client, client)

    async def run(
        self,
        command: Command,
        *,
        check: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        input: str | bytes | None = None,
    ) -> Result:
        """Run a command to its end: a string with `sh -c`, a list without a shell.

        `timeout` in seconds; then it is killed and `TimedOut` raised. With `check` a failure raises
        `CommandError`. Without `input` its standard input is empty. A command that does not exist
        gives 127, as from a shell.
        """
        process = await self.popen(command, env=env, cwd=cwd, user=user, stdin=input is not None)
        started = time.monotonic()
        try:
            out, err = await process.communicate(input, timeout)
        except TimedOut:
            raise TimedOut(f"{shown(command)}: still ran after {timeout:g} s; killed") from None
        finally:
            process.close()
        assert process.returncode is not None
        result = Result(command, process.returncode, out, err, time.monotonic() - started)
        return result.check() if check else result

    async def succeed(self, *commands: Command, timeout: float | None = None) -> str:
        """Run commands that must succeed; what they printed. Raises `CommandError`."""
        results = [await self.run(one, check=True, timeout=timeout) for one in commands]
        return "".join(one.stdout for one in results)

    async def fail(self, *commands: Command, timeout: float | None = None) -> str:
        """Run commands that must fail; what they printed. Raises `CommandError` if one succeeds."""
        text = ""
        for one in commands:
            result = await self.run(one, timeout=timeout)
            if result.returncode == 0:
                raise CommandError(result, "succeeded, and was to fail")
            text += result.stdout
        return text

    async def wait_until_succeeds(self, command: Command, timeout: float = 900.0) -> str:
        """Run a command until it succeeds; what it printed. Raises `TimedOut`."""
        return await self._until(command, True, timeout)

    async def wait_until_fails(self, command: Command, timeout: float = 900.0) -> str:
        """Run a command until it fails; what it printed. Raises `TimedOut`."""
        return await self._until(command, False, timeout)

    async def _until(self, command: Command, wanted: bool, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while True:
            left = max(1.0, deadline - time.monotonic())
            result = await self.run(command, timeout=left)
            if bool(result) is wanted:
                return result.stdout
            if time.monotonic() >= deadline:
                last = f"exit code {result.returncode}: {result.stderr.strip()[-200:]}"
                raise TimedOut(
                    f"{shown(command)}: did not {'succeed' if wanted else 'fail'} in"
                    f" {timeout:g} s; last {last}"
                )
            await asyncio.sleep(POLL_SECONDS)

    # ------------------------------------------------------------------ files
    async def put(
        self, source: str | os.PathLike[str], target: str, *, user: str | None = None
    ) -> None:
        """Copy a file or tree into the guest, as `cp -r` would; `source/` means its contents.

        Files are root's, or `user`'s. Raises `ConfigError` when there is no `source`.
        """
        await put(self.client, source, target, user)

    async def get(
        self, source: str, target: str | os.PathLike[str], *, user: str | None = None
    ) -> None:
        """Copy a file or tree out of the guest; `source/` means its contents."""
        await get(self.client, source, target, user)

    # ------------------------------------------------------------------ waiting
    async def wait_for_agent(self, timeout: float = AGENT_SECONDS) -> None:
        """Wait until the guest takes commands. Raises `HostError`."""
        await ask(self.client, "ping", agent_timeout=timeout)

    async def wait_for_open_port(self, port: int, timeout: float = 900.0) -> None:
        """Wait until something in the guest listens on a TCP port. Raises `TimedOut`."""
        deadline = time.monotonic() + timeout
        while True:
            found = (await ask(self.client, "ports")).get("tcp", [])
            if any(number == port for _, number in found):
                return
            if time.monotonic() >= deadline:
                raise TimedOut(f"nothing listened on the guest's port {port} in {timeout:g} s")
            await asyncio.sleep(POLL_SECONDS)

    async def wait_for_unit(self, unit: str, timeout: float = 900.0) -> None:
        """Wait until a unit of systemd is active. Raises `CommandError` when it failed."""
        deadline = time.monotonic() + timeout
        while True:
            result = await self.run(["systemctl", "is-active", "--", unit])
            state = result.stdout.strip()
            if state == "active":
                return
            if state == "failed":
                log = await self.run(
                    ["journalctl", "-u", unit, "-n", "20", "--no-pager", "-o", "cat"]
                )
                raise CommandError(log, f"{unit} has failed")
            if result.returncode == 127:
                raise ConfigError("the guest has no systemd to wait for")
            if time.monotonic() >= deadline:
                raise TimedOut(f"{unit} was {state or 'unknown'} after {timeout:g} s")
            await asyncio.sleep(POLL_SECONDS)


def argv(command: Command) -> list[str]:
    """A command as the guest gets it. Raises `ConfigError` for an empty one."""
    if isinstance(command, str):
        return ["sh", "-c", command]
    words = [str(word) for word in command]
    if not words:
        raise ConfigError("an empty command")
    return words
