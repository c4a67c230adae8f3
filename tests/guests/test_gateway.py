"""Debian behind the gateway: its own DHCP client, resolver, router solicitation and TCP."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kasou.control.network import UserNetwork
from kasou.machine.machine import Nic, Peripherals

pytestmark = [pytest.mark.guest, pytest.mark.slow]

BIG = bytes(range(256)) * 32768
MAC = "52:54:00:12:34:56"
SCRIPT = (
    "printf '%s\\n' '#!/bin/sh' '[ \"$1\" = bound ] || exit 0' "
    "'ip addr add $ip/$mask dev $interface; ip route add default via $router' "
    "'echo nameserver $dns > /etc/resolv.conf; echo search $domain >> /etc/resolv.conf' "
    "'echo lease $ip $router $dns $domain $mtu' > /tmp/lease; chmod +x /tmp/lease"
)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[int]:
    """A web server on 127.0.0.1 with a file of 8 MiB; its port."""
    (tmp_path / "big").write_bytes(BIG)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def test_a_guest_behind_the_gateway(boot, web: int) -> None:
    with UserNetwork(seed=1) as network:
        port = network.add_port("vm", MAC, ["0:80"])
        network.add_port("other", "52:54:00:00:00:02")
        session = boot(peripherals=Peripherals(nics=[Nic(port, bytes.fromhex("525400123456"))]))
        there = "[ -d /sys/class/net/eth0 ] && echo load''ed"
        if b"loaded" not in session.type(f"modprobe virtio_net; {there}"):
            session.finish("poweroff")
            pytest.skip("not run: this image has no virtio_net")
        session.type("ip link set eth0 up")
        session.type(SCRIPT)
        lease = session.type("udhcpc -i eth0 -n -q -O mtu -s /tmp/lease 2>&1")
        assert b"lease 10.0.2.15 10.0.2.2 10.0.2.3 kasou" in lease
        assert b" 3 packets received" in session.type("ping -c 3 10.0.2.2")
        assert b"10.0.2.16" in session.type("nslookup other.kasou 10.0.2.3")
        assert b"10.0.2.2" in session.type("nslookup host.internal")
        six = session.type("sleep 3; ip -6 addr show dev eth0; ping -6 -c 1 fd00::2")
        assert b"fd00::5054:ff:fe12:3456" in six and b" 1 packets received" in six
        digest = session.type(f"wget -q -O - http://10.0.2.2:{web}/big | md5sum")
        assert digest.split()[0].decode() == hashlib.md5(BIG).hexdigest()
        refused = session.type("wget -O - http://10.0.2.2:1/ 2>&1")
        assert b"refused" in refused
        session.type("(echo from-the-guest | nc -l -p 80 > /tmp/got) & sleep 1")
        with socket.create_connection(("127.0.0.1", port.forwards[0].port), timeout=20) as client:
            client.sendall(b"from-the-host\n")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"from-the-guest\n"
        assert b"from-the-host" in session.type("cat /tmp/got")
        assert network.statistics()["network"] == {}
        assert session.finish("poweroff").kind == "poweroff"
