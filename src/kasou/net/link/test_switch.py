from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.errors import ConfigError
from kasou.net.link.switch import Switch, SwitchPort
from kasou.net.wire.address import BROADCAST, mac
from kasou.net.wire.ethernet import EthernetHeader, VlanTag, parse_ethernet
from kasou.ports import Frame, Gso

A, B, C = mac("02:00:00:00:00:0a"), mac("02:00:00:00:00:0b"), mac("02:00:00:00:00:0c")


def frame(source: bytes, destination: bytes, vlan: int | None = None) -> Frame:
    tag = None if vlan is None else VlanTag(vlan)
    return Frame(EthernetHeader(destination, source, 0x0800, tag).emit() + b"payload")


def names(out: list[tuple[SwitchPort, Sequence[Frame]]]) -> dict[str, int]:
    return {port.name: len(frames) for port, frames in out}


def test_learns_floods_and_forgets() -> None:
    switch = Switch(ageing_ns=100)
    a, b, _ = (switch.add_port(name) for name in "abc")
    assert names(switch.receive(a, [frame(A, BROADCAST)], 0)) == {"b": 1, "c": 1}
    assert names(switch.receive(b, [frame(B, A)] * 2, 10)) == {"a": 2}
    assert names(switch.receive(a, [frame(A, B), frame(A, C)], 20)) == {"b": 2, "c": 1}
    assert names(switch.receive(a, [frame(A, B)], 111)) == {"b": 1, "c": 1}  # B aged out
    assert switch.receive(b, [frame(C, A), frame(B, C)], 120) == [(a, [frame(C, A)])]  # C is at b
    switch.remove_port(b)
    assert switch.port_of(B) is None and switch.port_of(A) is a


def test_a_station_that_moves_is_found_at_its_new_port() -> None:
    switch = Switch()
    a, b, c = (switch.add_port(name) for name in "abc")
    switch.receive(a, [frame(A, BROADCAST)], 0)
    switch.receive(b, [frame(A, BROADCAST)], 1)
    assert names(switch.receive(c, [frame(C, A)], 2)) == {"b": 1}


def test_vlans_are_separate_and_trunks_carry_them_tagged() -> None:
    switch = Switch()
    red, blue = switch.add_port("red", vlan=10), switch.add_port("blue", vlan=20)
    trunk = switch.add_port("trunk", trunk=())
    ((port, (tagged,)),) = switch.receive(red, [frame(A, BROADCAST)], 0)
    assert port is trunk and parse_ethernet(tagged.data)[0].vlan == VlanTag(10)
    assert switch.receive(trunk, [frame(B, A, 10)], 1) == [(red, [frame(B, A)])]
    assert switch.receive(trunk, [frame(B, BROADCAST, 20)], 1) == [(blue, [frame(B, BROADCAST)])]
    assert switch.receive(red, [frame(A, B, 20)], 2) == [] and red.dropped == 1


def test_a_native_vlan_passes_untagged_and_others_only_if_allowed() -> None:
    switch = Switch()
    trunk, access = switch.add_port("t", vlan=7, trunk={8}), switch.add_port("a", vlan=7)
    assert switch.receive(trunk, [frame(A, BROADCAST)], 0) == [(access, [frame(A, BROADCAST)])]
    assert switch.receive(trunk, [frame(A, BROADCAST, 9)], 0) == []
    assert switch.receive(access, [frame(B, A)], 0) == [(trunk, [frame(B, A)])]


def test_offloads_move_with_the_tag() -> None:
    switch = Switch()
    red = switch.add_port("red", vlan=10)
    switch.add_port("trunk", trunk=())
    unit = frame(A, B)._replace(csum=(34, 16), gso=Gso("tcp4", 1448, 66))
    ((_, (out,)),) = switch.receive(red, [unit], 0)
    assert out.csum == (38, 16) and out.gso == Gso("tcp4", 1448, 70)


def test_a_full_table_floods() -> None:
    switch = Switch(max_addresses=1)
    a, b, _ = (switch.add_port(name) for name in "abc")
    switch.receive(a, [frame(A, BROADCAST)], 0)
    switch.receive(b, [frame(B, BROADCAST)], 0)
    assert names(switch.receive(a, [frame(A, B)], 0)) == {"b": 1, "c": 1}


@given(st.lists(st.binary(max_size=30)))
def test_any_frames_pass_or_drop(frames: list[bytes]) -> None:
    switch = Switch()
    a = switch.add_port("a", trunk=())
    switch.add_port("b", vlan=2)
    switch.receive(a, [Frame(data) for data in frames], 0)
    assert a.received == len(frames)


def test_bad_ports_are_refused() -> None:
    switch = Switch()
    switch.add_port("a")
    bad: tuple[dict[str, Any], ...] = (
        {"name": "a"},
        {"name": "b", "vlan": 4095},
        {"name": "b", "trunk": {0}},
    )
    for arguments in bad:
        with pytest.raises(ConfigError):
            switch.add_port(**arguments)
