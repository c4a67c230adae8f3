"""What a VM may reach beyond its network: `--egress allow | none | allow:DOMAIN,CIDR,...`.

    allow                          everything (the default)
    none                           nothing: only the network's own services and its VMs
    allow:deb.debian.org,*.pypi.org,10.1.0.0/16,host

A domain admits the addresses that our DNS gave for it, to this VM, until some time after their TTL;
`*.x` admits every name below x, not x itself. Names that are not admitted are not resolved either:
a query is a way out as well. `host` (or the gateway's address) admits the host's loopback. Rules
are about new flows; those already open go on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kasou.errors import ConfigError
from kasou.net.wire.address import IpAddress, Prefix

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*{_LABEL}")
GRACE_NS = 600 * 1_000_000_000
"""How long past its TTL a resolved address is admitted: programs keep addresses."""
_MAX_RESOLVED = 8192


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The rules. `everything` makes the others moot."""

    everything: bool = True
    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    prefixes: tuple[Prefix, ...] = ()
    host: bool = False

    @classmethod
    def parse(cls, text: str) -> EgressPolicy:
        """Read what `--egress` says. Raises `ConfigError`."""
        kind, _, rules = text.strip().partition(":")
        if kind == "allow" and not rules and ":" not in text:
            return cls()
        if kind == "none" and not rules:
            return cls(everything=False)
        if kind != "allow" or not rules:
            raise ConfigError(
                f"egress {text!r}: expected allow, none, or allow:DOMAIN,CIDR,... "
                "(for example allow:*.debian.org,10.0.0.0/8)"
            )
        names, suffixes, prefixes, host = set(), [], [], False
        for rule in rules.split(","):
            rule = rule.strip().lower().rstrip(".")
            if rule == "host":
                host = True
            elif re.fullmatch(r"[0-9./]+", rule) or ":" in rule:
                prefixes.append(Prefix.parse(rule))
            elif not _DOMAIN.fullmatch(rule):
                raise ConfigError(f"egress rule {rule!r} is neither a domain nor a network")
            elif rule.startswith("*."):
                suffixes.append(rule[1:])
            else:
                names.add(rule)
        return cls(False, frozenset(names), tuple(suffixes), tuple(prefixes), host)

    def allows_name(self, name: str) -> bool:
        """Whether `name` (lower case, no final dot) may be resolved and reached."""
        return self.everything or name in self.names or name.endswith(self.suffixes)


@dataclass(slots=True)
class Egress:
    """A VM's policy with what its DNS answers were."""

    policy: EgressPolicy = field(default_factory=EgressPolicy)
    denied: int = 0
    _resolved: dict[IpAddress, int] = field(default_factory=dict)

    def resolved(self, name: str, addresses: list[tuple[IpAddress, int]], now: int) -> None:
        """Our DNS told this VM that `name` is at `addresses`, each with its TTL in s."""
        if self.policy.everything or not self.policy.allows_name(name):
            return
        if len(self._resolved) + len(addresses) > _MAX_RESOLVED:
            self._resolved = {each: end for each, end in self._resolved.items() if end > now}
        for address, ttl in addresses[:_MAX_RESOLVED]:
            end = now + ttl * 1_000_000_000 + GRACE_NS
            self._resolved[address] = max(end, self._resolved.get(address, 0))

    def allows(self, address: IpAddress, now: int) -> bool:
        """Whether a flow to `address` may be opened now."""
        policy = self.policy
        if policy.everything or self._resolved.get(address, 0) > now:
            return True
        return any(address in prefix for prefix in policy.prefixes)
