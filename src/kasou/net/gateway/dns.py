"""The network's DNS: local names are answered, all others asked of the host's servers.

    query --local name--> answer
          --egress rules say no--> REFUSED
          --to a server over UDP, 2 s each, all servers twice--> its reply, as it came
          --none answers, or there is no such name--> the host's own resolver (its files know more)
          --nothing--> SERVFAIL

A query that came by TCP, or whose reply was cut short, goes to the servers by TCP. Replies are
believed only from the server asked, on a port and with an ID drawn for this query, and for the same
question (RFC 5452). What they say is remembered for the VM's egress rules.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from kasou.errors import HostError
from kasou.net.gateway.names import TTL_S, LocalAnswer, LocalNames
from kasou.net.gateway.outside import Datagrams, Failure, Outside, Stream
from kasou.net.gateway.station import Station
from kasou.net.wire.address import ANY4, ANY6, IpAddress, ip, ip_text

TRY_NS = 2 * 1_000_000_000
TCP_TRY_NS = 5 * 1_000_000_000
ROUNDS = 2
MAX_PENDING = 1024
_PORT = 53
_A, _AAAA = dns.rdatatype.A, dns.rdatatype.AAAA

Reply = Callable[[bytes], None]
Denied = Callable[[Station, str], None]


@dataclass(slots=True, eq=False)
class _Query:
    """A query that waits for the world. `servers` are those still to be asked."""

    station: Station | None
    message: dns.message.QueryMessage
    name: str
    reply: Reply
    by_tcp: bool
    servers: list[IpAddress]
    wire: bytes = b""
    upstream_id: int = 0
    server: IpAddress = b""
    socket: Datagrams | None = None
    stream: Stream | None = None
    received: bytearray = field(default_factory=bytearray)
    due: int = 0
    done: bool = False


class DnsForwarder:
    """Answers queries. `now` of the callbacks from outside is the time of the last call in."""

    def __init__(
        self, outside: Outside, names: LocalNames, rng: random.Random, on_denied: Denied
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.now = 0
        self._outside, self._names, self._rng, self._on_denied = outside, names, rng, on_denied
        self._pending: dict[int, _Query] = {}

    def receive(
        self, wire: bytes, station: Station | None, by_tcp: bool, reply: Reply, now: int
    ) -> bool:
        """A query from `station`; `reply` is called with the answer, now or later.

        False when there will be none: it is no query, or nothing that can be answered.
        """
        self.now = now
        self.counters["queries"] += 1
        try:
            message = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError, IndexError):
            self.counters["malformed"] += 1
            return False
        if message.flags & dns.flags.QR:
            self.counters["malformed"] += 1
            return False
        if not isinstance(message, dns.message.QueryMessage) or len(message.question) != 1:
            refusal = (
                dns.rcode.NOTIMP if message.opcode() != dns.opcode.QUERY else dns.rcode.FORMERR
            )
            return self._fail(message, refusal, reply)
        question = message.question[0]
        if question.rdclass != dns.rdataclass.IN:
            return self._fail(message, dns.rcode.NOTIMP, reply)
        name = question.name.to_text(omit_final_dot=True).lower()
        local = self._names.lookup(name, _kind(question.rdtype))
        if local is not None:
            self.counters["local"] += 1
            reply(_local_reply(message, local))
            return True
        if station is not None and not station.egress.policy.allows_name(name):
            self.counters["denied"] += 1
            station.egress.denied += 1
            self._on_denied(station, name)
            return self._fail(message, dns.rcode.REFUSED, reply)
        if len(self._pending) >= MAX_PENDING:
            self.counters["overflowed"] += 1
            return self._fail(message, dns.rcode.SERVFAIL, reply)
        servers = list(self._outside.name_servers()) * ROUNDS
        query = _Query(station, message, name, reply, by_tcp, servers, wire)
        self._pending[id(query)] = query
        self._ask_next(query)
        return True

    def deadline(self) -> int | None:
        """When the next server is asked, ns."""
        return min((each.due for each in self._pending.values() if each.due), default=None)

    def handle_timer(self, now: int) -> None:
        """Servers that took too long are passed over."""
        self.now = now
        for query in [each for each in self._pending.values() if each.due and each.due <= now]:
            self.counters["timeouts"] += 1
            self._ask_next(query)

    def forget(self, station: Station) -> None:
        """A VM left: its queries need no answer."""
        for query in [each for each in self._pending.values() if each.station is station]:
            self._finish(query)

    # ------------------------------------------------------------------ asking

    def _ask_next(self, query: _Query) -> None:
        self._let_go(query)
        while query.servers:
            query.server = query.servers.pop(0)
            query.upstream_id = self._rng.randrange(65536)
            wire = query.upstream_id.to_bytes(2, "big") + query.wire[2:]
            try:
                if query.by_tcp:
                    self._ask_by_tcp(query, wire)
                else:
                    self._ask_by_udp(query, wire)
                return
            except HostError:
                self.counters["unsent"] += 1
        self._ask_host(query, dns.rcode.SERVFAIL)

    def _ask_by_udp(self, query: _Query, wire: bytes) -> None:
        socket = self._outside.datagrams(ANY4 if len(query.server) == 4 else ANY6, 0)
        query.socket = socket
        socket.on_readable = lambda: self._readable(query, socket)
        socket.on_failed = lambda address, port, failure: self._failed(query, socket)
        socket.send(wire, query.server, _PORT)
        query.due = self.now + TRY_NS

    def _readable(self, query: _Query, socket: Datagrams) -> None:
        for datagram in socket.receive():
            if query.socket is not socket:
                return
            if (datagram.source, datagram.source_port) == (query.server, _PORT):
                self._answered(query, datagram.payload)

    def _failed(self, query: _Query, socket: Datagrams) -> None:
        if query.socket is socket:
            self._ask_next(query)

    def _ask_by_tcp(self, query: _Query, wire: bytes) -> None:
        stream = self._outside.connect(query.server, _PORT)
        query.stream = stream
        query.received.clear()
        query.due = self.now + TCP_TRY_NS

        def connected(failure: Failure | None) -> None:
            if query.stream is not stream:
                return
            if failure is not None:
                return self._ask_next(query)
            try:
                stream.send([len(wire).to_bytes(2, "big") + wire])
            except HostError:
                return self._ask_next(query)
            stream.want(True, False)

        def ready(readable: bool, writable: bool) -> None:
            if query.stream is not stream:
                return
            try:
                data = stream.receive(65536)
            except HostError:
                data = b""
            if data == b"":
                return self._ask_next(query)
            query.received += data or b""
            size = int.from_bytes(query.received[:2], "big")
            if len(query.received) >= 2 + size and len(query.received) > 2:
                self._answered(query, bytes(query.received[2 : 2 + size]))

        stream.on_connected, stream.on_ready = connected, ready

    def _ask_host(
        self, query: _Query, otherwise: dns.rcode.Rcode, reply: bytes | None = None
    ) -> None:
        """Nobody knows: perhaps the host does, by its files. `reply` is what the world said."""
        self._let_go(query)
        query.due = 0
        kind = query.message.question[0].rdtype
        if kind not in (_A, _AAAA):
            return self._give(query, reply, otherwise)

        def resolved(addresses: list[IpAddress] | None) -> None:
            if query.done:
                return
            if addresses is None:
                return self._give(query, reply, otherwise)
            self.counters["by_host"] += 1
            size = 4 if kind == _A else 16
            mine = [each for each in addresses if len(each) == size]
            self._remember(query, [(each, TTL_S) for each in mine])
            answer = _local_reply(query.message, LocalAnswer(True, mine), authoritative=False)
            self._finish(query)
            query.reply(answer)

        self._outside.resolve(query.name, kind == _AAAA, resolved)

    # ------------------------------------------------------------------ answers

    def _answered(self, query: _Query, wire: bytes) -> None:
        if query.upstream_id.to_bytes(2, "big") != wire[:2]:
            return
        try:
            answer = dns.message.from_wire(wire, ignore_trailing=True, raise_on_truncation=False)
        except (dns.exception.DNSException, ValueError, IndexError):
            self.counters["malformed_replies"] += 1
            return
        if not answer.flags & dns.flags.QR or answer.question != query.message.question:
            return
        own = query.wire[:2] + wire[2:]
        rcode = answer.rcode()
        if rcode in (dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP) and query.servers:
            return self._ask_next(query)
        if rcode != dns.rcode.NOERROR:
            return self._ask_host(query, rcode, own)
        found = []
        for rrset in answer.answer:
            if rrset.rdtype in (_A, _AAAA):
                found += [(ip(each.address), min(rrset.ttl, 86400)) for each in rrset]
        self._remember(query, found)
        self.counters["forwarded"] += 1
        self._finish(query)
        query.reply(own)

    def _remember(self, query: _Query, found: Sequence[tuple[IpAddress, int]]) -> None:
        if query.station is not None:
            query.station.egress.resolved(query.name, list(found), self.now)

    def _give(self, query: _Query, reply: bytes | None, otherwise: dns.rcode.Rcode) -> None:
        self._finish(query)
        if reply is not None:
            query.reply(reply)
        else:
            self._fail(query.message, otherwise, query.reply)

    def _fail(self, message: dns.message.Message, rcode: dns.rcode.Rcode, reply: Reply) -> bool:
        answer = dns.message.make_response(message, recursion_available=True)
        answer.set_rcode(rcode)
        reply(answer.to_wire())
        return True

    def _let_go(self, query: _Query) -> None:
        if query.socket is not None:
            query.socket.close()
        if query.stream is not None:
            query.stream.abort()
        query.socket = query.stream = None

    def _finish(self, query: _Query) -> None:
        self._let_go(query)
        query.done = True
        self._pending.pop(id(query), None)


def _kind(rdtype: dns.rdatatype.RdataType) -> Literal["A", "AAAA", "PTR", "other"]:
    if rdtype == _A:
        return "A"
    if rdtype == _AAAA:
        return "AAAA"
    return "PTR" if rdtype == dns.rdatatype.PTR else "other"


def _local_reply(
    message: dns.message.QueryMessage, answer: LocalAnswer, authoritative: bool = True
) -> bytes:
    response = dns.message.make_response(message, recursion_available=True)
    if authoritative:
        response.flags |= dns.flags.AA
    question = message.question[0]
    if not answer.exists:
        response.set_rcode(dns.rcode.NXDOMAIN)
    records = [ip_text(each) for each in answer.addresses]
    if answer.pointer is not None:
        records = [answer.pointer + "."]
    if records:
        response.answer.append(
            dns.rrset.from_text_list(question.name, TTL_S, "IN", question.rdtype, records)
        )
    return response.to_wire()
