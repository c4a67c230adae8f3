"""DHCP, DHCPv6 and DNS as clients see them."""

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.net.gateway.config import GatewayConfig
from kasou.net.gateway.dhcpv4 import Dhcpv4Server
from kasou.net.gateway.dhcpv6 import Dhcpv6Server
from kasou.net.gateway.lan import FakeStream, Guest, Lan
from kasou.net.gateway.outside import Failure
from kasou.net.gateway.plan import AddressPlan
from kasou.net.transport.tcp import Endpoint
from kasou.net.wire.address import ANY4, BROADCAST, BROADCAST4, ip, ip_text, mac
from kasou.net.wire.dhcpv4 import DhcpOption, DhcpType, Dhcpv4, parse_dhcpv4
from kasou.net.wire.dhcpv6 import (
    Dhcpv6,
    Dhcpv6Option,
    Dhcpv6Type,
    IdentityAssociation,
    parse_identity_association,
)
from kasou.net.wire.ipv4 import Ipv4Header
from kasou.net.wire.udp import UdpDatagram
from kasou.ports import Frame

A, B = mac("52:54:00:00:00:0a"), mac("52:54:00:00:00:0b")
DNS = ip("10.0.2.3")
UPSTREAM = ip("9.9.9.9")


# ---------------------------------------------------------------------- DHCP


def message(kind: DhcpType, client: bytes = A, **fields: object) -> Dhcpv4:
    options = {DhcpOption.MESSAGE_TYPE: bytes((kind,)), **fields.pop("options", {})}  # type: ignore[dict-item]
    return Dhcpv4(True, 0x1234, client, options, **fields)  # type: ignore[arg-type]


def server(**config: object) -> Dhcpv4Server:
    return Dhcpv4Server(GatewayConfig(**config), {A: "alpha"}.get)  # type: ignore[arg-type]


def ask(dhcp: Dhcpv4Server, request: Dhcpv4, now: int = 0) -> Dhcpv4:
    answered = dhcp.receive(request, now)
    assert answered is not None
    return answered[0]


def test_discover_offer_request_ack() -> None:
    dhcp = server()
    asked = {DhcpOption.PARAMETERS: bytes((1, 3, 6, 12, 15, 26))}
    offer = ask(dhcp, message(DhcpType.DISCOVER, options=asked))
    assert offer.type == DhcpType.OFFER and ip_text(offer.yiaddr) == "10.0.2.15"
    wanted = {DhcpOption.REQUESTED_ADDRESS: offer.yiaddr, DhcpOption.SERVER_ID: ip("10.0.2.2")}
    ack = ask(dhcp, message(DhcpType.REQUEST, options=asked | wanted))
    assert ack.type == DhcpType.ACK and ack.yiaddr == offer.yiaddr
    assert ack.address(DhcpOption.ROUTER) == ip("10.0.2.2")
    assert ack.address(DhcpOption.DNS) == DNS
    assert ack.address(DhcpOption.SUBNET_MASK) == ip("255.255.255.0")
    assert ack.options[DhcpOption.HOST_NAME] == b"alpha"
    assert ack.options[DhcpOption.DOMAIN_NAME] == b"kasou"
    assert ack.options[DhcpOption.MTU] == (1500).to_bytes(2, "big")
    assert ack.options[DhcpOption.LEASE_TIME] == (86400).to_bytes(4, "big")


def test_a_mac_keeps_its_address() -> None:
    dhcp = server()
    assert dhcp.reserve(B) == ip("10.0.2.15")
    assert ask(dhcp, message(DhcpType.DISCOVER)).yiaddr == ip("10.0.2.16")
    dhcp.receive(message(DhcpType.RELEASE, ciaddr=ip("10.0.2.16")), 1)
    later = ask(dhcp, message(DhcpType.DISCOVER), 10**15)
    assert later.yiaddr == ip("10.0.2.16")


def test_renewing_is_answered_by_unicast_and_a_foreign_address_by_nak() -> None:
    dhcp = server()
    ask(dhcp, message(DhcpType.DISCOVER))
    renewed = dhcp.receive(message(DhcpType.REQUEST, ciaddr=ip("10.0.2.15")), 0)
    assert renewed is not None and renewed[0].type == DhcpType.ACK
    assert renewed[1] == ip("10.0.2.15")
    wrong = {DhcpOption.REQUESTED_ADDRESS: ip("192.168.1.7")}
    refused = dhcp.receive(message(DhcpType.REQUEST, options=wrong), 0)
    assert refused is not None and refused[0].type == DhcpType.NAK and refused[1] == BROADCAST4
    other = {DhcpOption.SERVER_ID: ip("10.0.2.99")}
    assert dhcp.receive(message(DhcpType.REQUEST, options=other), 0) is None


def test_a_restarted_network_confirms_what_a_client_remembers() -> None:
    dhcp = server()
    wanted = {DhcpOption.REQUESTED_ADDRESS: ip("10.0.2.40")}
    ack = ask(dhcp, message(DhcpType.REQUEST, options=wanted))
    assert ack.type == DhcpType.ACK and ack.yiaddr == ip("10.0.2.40")


def test_a_declined_address_is_left_alone_and_an_old_lease_reused() -> None:
    from kasou.net.wire.address import Prefix

    dhcp = server(network4=Prefix.parse("10.0.2.0/29"))
    first = ask(dhcp, message(DhcpType.DISCOVER)).yiaddr
    dhcp.receive(message(DhcpType.DECLINE, options={DhcpOption.REQUESTED_ADDRESS: first}), 0)
    macs = [bytes((2, 0, 0, 0, 0, n)) for n in range(4)]
    given = [dhcp.receive(message(DhcpType.DISCOVER, each), 0) for each in macs]
    assert [each is not None for each in given] == [True, True, True, False]
    assert first not in [each[0].yiaddr for each in given if each is not None]
    late = dhcp.receive(message(DhcpType.DISCOVER, macs[3]), 10**15)
    assert late is not None


def test_dhcp_over_the_wire() -> None:
    lan = Lan()
    guest = lan.add("alpha", A.hex(":"), configured=False)
    body = UdpDatagram(68, 67, message(DhcpType.DISCOVER).emit()).emit(ANY4, BROADCAST4)
    packet = Ipv4Header(ANY4, BROADCAST4, 17).emit(len(body)) + body
    lan.network.receive(guest.port, [Frame(BROADCAST + A + b"\x08\x00" + packet)], 0)
    lan.settle()
    (offer,) = [frame for frame in guest.frames if frame.data[12:14] == b"\x08\x00"]
    parsed = parse_dhcpv4(offer.data[42:])
    assert parsed.type == DhcpType.OFFER and parsed.yiaddr == guest.address
    assert offer.data[:6] == BROADCAST


def test_dhcpv6_gives_dns_and_an_address_to_who_insists() -> None:
    dhcp = Dhcpv6Server(GatewayConfig())
    wanted = (int(Dhcpv6Option.OPTION_REQUEST), b"\0\x17\0\x18")
    reply = dhcp.receive(Dhcpv6(Dhcpv6Type.INFORMATION_REQUEST, 7, (wanted,)))
    assert reply is not None and reply.type == Dhcpv6Type.REPLY
    assert reply.option(Dhcpv6Option.DNS_SERVERS) == ip("fd00::3")
    assert reply.option(Dhcpv6Option.DOMAIN_LIST) == b"\5kasou\0"
    client = (int(Dhcpv6Option.CLIENT_ID), b"\0\3\0\1" + A)
    association = (int(Dhcpv6Option.IA_NA), IdentityAssociation(9, 0, 0).emit())
    addresses = []
    for kind, answer in ((Dhcpv6Type.SOLICIT, 2), (Dhcpv6Type.REQUEST, 7)):
        got = dhcp.receive(Dhcpv6(kind, 8, (client, association)))
        assert got is not None and got.type == answer and got.option(1) == client[1]
        given = parse_identity_association(got.option(Dhcpv6Option.IA_NA) or b"")
        addresses.append(given.options[0][1][:16])
    assert addresses[0] == addresses[1] and addresses[0][:8] == ip("fd00::")[:8]
    other = (int(Dhcpv6Option.SERVER_ID), b"someone else")
    assert dhcp.receive(Dhcpv6(Dhcpv6Type.REQUEST, 8, (client, other, association))) is None


# ---------------------------------------------------------------------- DNS


def query(
    lan: Lan, guest: Guest, name: str, kind: str = "A"
) -> tuple[dns.message.Message, list[dns.message.Message]]:
    """Ask over UDP; the question and the list in which its answers will appear."""
    question = dns.message.make_query(name, kind)
    answers: list[dns.message.Message] = []
    socket = guest.host.udp.bind(None, 0)
    socket.on_readable = lambda socket: answers.append(
        dns.message.from_wire((socket.receive() or pytest.fail()).payload)
    )
    socket.send(question.to_wire(), DNS, 53)
    lan.settle()
    return question, answers


def records(answer: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in answer.answer for item in rrset]


@pytest.mark.parametrize("name", ["web", "web.kasou", "WEB.internal."])
def test_names_of_vms(name: str) -> None:
    lan = Lan()
    lan.add("web", "52:54:00:00:00:01")
    guest = lan.add()
    question, (answer,) = query(lan, guest, name)
    assert records(answer) == ["10.0.2.15"] and answer.id == question.id
    assert answer.flags & dns.flags.AA and answer.flags & dns.flags.RA


def test_names_of_the_network_and_its_own_domain() -> None:
    lan = Lan()
    guest = lan.add()
    assert records(query(lan, guest, "host.kasou")[1][0]) == ["10.0.2.2"]
    assert records(query(lan, guest, "host.internal", "AAAA")[1][0]) == ["fd00::2"]
    assert query(lan, guest, "nobody.kasou")[1][0].rcode() == dns.rcode.NXDOMAIN
    assert records(query(lan, guest, "15.2.0.10.in-addr.arpa", "PTR")[1][0]) == ["vm.kasou."]
    nothing = query(lan, guest, "vm.kasou", "MX")[1][0]
    assert nothing.rcode() == dns.rcode.NOERROR and not nothing.answer


def answer_upstream(lan: Lan, *items: str, rcode: int = 0, source: bytes = UPSTREAM) -> None:
    """The server outside answers the last query."""
    socket = lan.outside.sockets[-1]
    wire, address, port = socket.sent[-1]
    assert (address, port) == (source, 53)
    asked = dns.message.from_wire(wire)
    response = dns.message.make_response(asked, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    for item in items:
        kind = "AAAA" if ":" in item else "A"
        response.answer.append(dns.rrset.from_text(asked.question[0].name, 60, "IN", kind, item))
    socket.arrive(response.to_wire(), source, 53)
    lan.settle()


def test_other_names_are_forwarded() -> None:
    lan = Lan()
    lan.outside.servers = [UPSTREAM]
    guest = lan.add()
    question, answers = query(lan, guest, "example.org")
    assert answers == []
    answer_upstream(lan, "93.184.216.34")
    assert records(answers[0]) == ["93.184.216.34"] and answers[0].id == question.id
    assert lan.outside.sockets[0].is_closed


def test_forged_replies_are_not_believed() -> None:
    lan = Lan()
    lan.outside.servers = [UPSTREAM]
    guest = lan.add()
    _, answers = query(lan, guest, "example.org")
    socket = lan.outside.sockets[-1]
    genuine = dns.message.from_wire(socket.sent[-1][0])
    forged = dns.message.make_response(genuine)
    wrong_id = bytearray(forged.to_wire())
    wrong_id[0] ^= 1
    other = dns.message.make_response(dns.message.make_query("evil.org", "A", id=genuine.id))
    socket.arrive(bytes(wrong_id), UPSTREAM, 53)
    socket.arrive(forged.to_wire(), ip("6.6.6.6"), 53)
    socket.arrive(forged.to_wire(), UPSTREAM, 5353)
    socket.arrive(other.to_wire(), UPSTREAM, 53)
    socket.arrive(b"\0\1", UPSTREAM, 53)
    lan.settle()
    assert answers == []


def test_silent_servers_give_way_to_the_next_and_last_to_the_host() -> None:
    lan = Lan()
    lan.outside.servers = [ip("9.9.9.1"), ip("9.9.9.2")]
    lan.outside.hosts["intranet"] = [ip("10.1.1.1")]
    guest = lan.add()
    _, answers = query(lan, guest, "intranet")
    lan.run(lambda: bool(answers), seconds=20)
    asked = [socket.sent[0][1] for socket in lan.outside.sockets]
    assert asked == [ip("9.9.9.1"), ip("9.9.9.2")] * 2
    assert records(answers[0]) == ["10.1.1.1"]


def test_a_host_without_servers_resolves_by_its_library() -> None:
    lan = Lan()
    lan.outside.hosts["intranet.example"] = [ip("10.1.1.1"), ip("2001:db8::7")]
    guest = lan.add()
    assert records(query(lan, guest, "intranet.example")[1][0]) == ["10.1.1.1"]
    assert records(query(lan, guest, "intranet.example", "AAAA")[1][0]) == ["2001:db8::7"]
    assert query(lan, guest, "unknown.example")[1][0].rcode() == dns.rcode.SERVFAIL
    assert query(lan, guest, "unknown.example", "TXT")[1][0].rcode() == dns.rcode.SERVFAIL


def test_what_the_servers_do_not_know_the_host_may() -> None:
    lan = Lan()
    lan.outside.servers = [UPSTREAM]
    lan.outside.hosts["printer"] = [ip("192.168.1.9")]
    guest = lan.add()
    for name, expected in (("printer", ["192.168.1.9"]), ("nothing", [])):
        _, answers = query(lan, guest, name)
        answer_upstream(lan, rcode=3)
        assert records(answers[0]) == expected
    assert answers[0].rcode() == dns.rcode.NXDOMAIN


def test_egress_by_domain() -> None:
    lan = Lan()
    lan.outside.servers = [UPSTREAM]
    guest = lan.add(egress="allow:*.debian.org")
    refused = query(lan, guest, "secret.evil.org")[1][0]
    assert refused.rcode() == dns.rcode.REFUSED and lan.outside.sockets == []
    assert [(each.protocol, each.target) for each in lan.denied] == [("dns", "secret.evil.org")]
    mirror = ip("151.101.2.132")
    local = guest.host.ip.source_for(mirror)
    assert local is not None
    guest.host.tcp.connect(Endpoint(local, 0), Endpoint(mirror, 80), lan.now)
    lan.settle()
    assert lan.outside.streams == []
    query(lan, guest, "deb.debian.org")
    answer_upstream(lan, "151.101.2.132")
    guest.host.tcp.connect(Endpoint(local, 0), Endpoint(mirror, 80), lan.now)
    lan.settle()
    assert [stream.address for stream in lan.outside.streams] == [mirror]
    lan.run(seconds=60 + 600 + 1)
    guest.host.tcp.connect(Endpoint(local, 0), Endpoint(mirror, 80), lan.now)
    lan.settle()
    assert len(lan.outside.streams) == 1


def test_dns_over_tcp() -> None:
    lan = Lan()
    lan.outside.servers = [UPSTREAM]
    guest = lan.add()
    local = guest.host.ip.source_for(DNS)
    assert local is not None
    connection = guest.host.tcp.connect(Endpoint(local, 0), Endpoint(DNS, 53), lan.now)
    wires = [dns.message.make_query(name, "A").to_wire() for name in ("vm.kasou", "example.org")]
    lan.settle()
    for wire in wires:
        connection.write(len(wire).to_bytes(2, "big") + wire)
    connection.close()
    lan.settle()
    (stream,) = lan.outside.streams
    assert (stream.address, stream.port) == (UPSTREAM, 53) and stream.on_connected is not None
    stream.on_connected(None)
    asked = dns.message.from_wire(bytes(stream.sent[2:]))
    response = dns.message.make_response(asked)
    response.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "A", "93.184.216.34"))
    reply = response.to_wire()
    framed = len(reply).to_bytes(2, "big") + reply
    stream.arrive(framed[:5], framed[5:])
    lan.settle()
    data = b""
    while piece := connection.read():
        data += piece
    answers = []
    while data:
        size = int.from_bytes(data[:2], "big")
        answers.append(dns.message.from_wire(data[2 : 2 + size]))
        data = data[2 + size :]
    assert [records(answer) for answer in answers] == [["10.0.2.15"], ["93.184.216.34"]]
    assert stream.is_closed and connection.remote_closed


def test_a_tcp_server_that_refuses_gives_way() -> None:
    lan = Lan()
    lan.outside.servers = [UPSTREAM]
    guest = lan.add()
    replies: list[bytes] = []
    wire = dns.message.make_query("example.org", "A").to_wire()
    lan.network.gateway.dns.receive(wire, guest.port.station, True, replies.append, 0)
    for _ in range(2):
        stream: FakeStream = lan.outside.streams[-1]
        assert stream.on_connected is not None
        stream.on_connected(Failure.REFUSED)
    lan.settle()
    assert dns.message.from_wire(replies[0]).rcode() == dns.rcode.SERVFAIL


def test_what_is_no_query() -> None:
    lan = Lan()
    replies: list[bytes] = []
    forwarder = lan.network.gateway.dns
    for wire in (b"", b"\0" * 11, bytes(12), b"\xff" * 40):
        forwarder.receive(wire, None, False, replies.append, 0)
    update = dns.message.make_query("x.org", "A")
    update.set_opcode(dns.opcode.NOTIFY)
    forwarder.receive(update.to_wire(), None, False, replies.append, 0)
    chaos = dns.message.make_query("version.bind", "TXT", "CH")
    forwarder.receive(chaos.to_wire(), None, False, replies.append, 0)
    codes = [dns.message.from_wire(each).rcode() for each in replies]
    assert dns.rcode.NOTIMP in codes and lan.outside.sockets == []


def test_what_addresses_mean() -> None:
    plan = AddressPlan(GatewayConfig())
    meant = {
        "10.0.2.2": "127.0.0.1", "fd00::2": "::1", "1.1.1.1": "1.1.1.1", "192.168.1.1": "192.168.1.1",
        "2001:db8::1": "2001:db8::1", "64:ff9b::101:101": "64:ff9b::101:101",
        "10.0.2.3": None, "10.0.2.99": None, "fd00::99": None, "fe80::1": None, "127.0.0.1": None,
        "::1": None, "::": None, "::ffff:127.0.0.1": None, "0.0.0.0": None, "224.0.0.1": None,
        "ff02::1": None, "255.255.255.255": None, "250.1.1.1": None,
    }  # fmt: skip
    for guest, host in meant.items():
        assert plan.host_address(ip(guest)) == (None if host is None else ip(host)), guest


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_message_makes_the_forwarder_fall(data: st.DataObject) -> None:
    lan = Lan()
    lan.outside.servers = [UPSTREAM]
    forwarder = lan.network.gateway.dns
    kind = data.draw(st.sampled_from(["A", "AAAA", "PTR", "ANY", "TXT", "OPT", "TSIG", "RRSIG"]))
    name = data.draw(st.sampled_from(["vm", "example.org", "1.2.0.10.in-addr.arpa", "."]))
    wire = bytearray(
        dns.message.make_query(name, kind, use_edns=data.draw(st.booleans())).to_wire()
    )
    for _ in range(data.draw(st.integers(0, 5))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    tail = data.draw(st.binary(max_size=30))
    forwarder.receive(bytes(wire) + tail, None, False, lambda answer: None, 0)
    for socket in lan.outside.sockets:
        reply = bytearray(socket.sent[-1][0])
        reply[2] |= 0x80
        if len(reply) > 12:
            reply[data.draw(st.integers(2, len(reply) - 1))] = data.draw(st.integers(0, 255))
        socket.arrive(bytes(reply) + tail, UPSTREAM, 53)
    lan.settle()
