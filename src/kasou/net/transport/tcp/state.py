"""The states of a connection and every way from one to another (RFC 9293 3.3.2, figure 5).

`python -m kasou.net.transport.tcp.state` draws the figure from the table. Nothing else changes a
connection's state: a step that is not in the table is a bug of ours, an `AssertionError`.

The figure's arrow from SYN-RECEIVED back to LISTEN is not among them: a `Listener` is what
listens, and the connection that a SYN made there ends instead.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """RFC 9293 3.3.2."""

    CLOSED = "CLOSED"
    LISTEN = "LISTEN"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"

    __hash__ = object.__hash__  # Enum's own hashes the name, in Python, for every segment


class On(Enum):
    """What moves a connection: a call of the user, what a segment says, or time."""

    ACTIVE_OPEN = "active OPEN"
    PASSIVE_OPEN = "passive OPEN"
    CLOSE = "CLOSE"
    ABORT = "ABORT"
    SYN = "rcv SYN"
    SYN_ACK = "rcv SYN,ACK"
    ACK_OF_SYN = "rcv ACK of SYN"
    FIN = "rcv FIN"
    ACK_OF_FIN = "rcv ACK of FIN"
    RST = "rcv RST"
    TIMEOUT = "timeout"


_S = State

# fmt: off
TRANSITIONS: dict[tuple[State, On], State] = {
    (_S.CLOSED,       On.PASSIVE_OPEN): _S.LISTEN,
    (_S.CLOSED,       On.ACTIVE_OPEN):  _S.SYN_SENT,
    (_S.LISTEN,       On.SYN):          _S.SYN_RECEIVED,
    (_S.SYN_SENT,     On.SYN):          _S.SYN_RECEIVED,   # simultaneous open
    (_S.SYN_SENT,     On.SYN_ACK):      _S.ESTABLISHED,
    (_S.SYN_SENT,     On.CLOSE):        _S.CLOSED,
    (_S.SYN_RECEIVED, On.ACK_OF_SYN):   _S.ESTABLISHED,
    (_S.ESTABLISHED,  On.CLOSE):        _S.FIN_WAIT_1,
    (_S.ESTABLISHED,  On.FIN):          _S.CLOSE_WAIT,
    (_S.FIN_WAIT_1,   On.ACK_OF_FIN):   _S.FIN_WAIT_2,
    (_S.FIN_WAIT_1,   On.FIN):          _S.CLOSING,        # simultaneous close
    (_S.FIN_WAIT_2,   On.FIN):          _S.TIME_WAIT,
    (_S.CLOSE_WAIT,   On.CLOSE):        _S.LAST_ACK,
    (_S.CLOSING,      On.ACK_OF_FIN):   _S.TIME_WAIT,
    (_S.LAST_ACK,     On.ACK_OF_FIN):   _S.CLOSED,
} | {
    (state, on): _S.CLOSED
    for state in State if state not in (_S.CLOSED, _S.LISTEN)
    for on in (On.ABORT, On.RST, On.TIMEOUT)
}
# fmt: on

SYNCHRONIZED = frozenset(State) - {_S.CLOSED, _S.LISTEN, _S.SYN_SENT, _S.SYN_RECEIVED}
MAY_SEND = frozenset({_S.ESTABLISHED, _S.CLOSE_WAIT, _S.SYN_SENT, _S.SYN_RECEIVED})
"""Where a write is accepted; before ESTABLISHED it is queued."""
MAY_RECEIVE = frozenset({_S.ESTABLISHED, _S.FIN_WAIT_1, _S.FIN_WAIT_2})
"""Where the peer may still send data."""


def figure() -> str:
    """Figure 5 as text: for each state its arrows, the ones to CLOSED by accident left out."""
    lines = []
    for state in State:
        lines.append(state.value)
        lines += [
            f"    {on.value:<16} -> {to.value}"
            for (start, on), to in TRANSITIONS.items()
            if start is state and on not in (On.ABORT, On.RST, On.TIMEOUT)
        ]
        if state is State.TIME_WAIT:
            lines.append(f"    {'2 MSL ' + On.TIMEOUT.value:<16} -> {State.CLOSED.value}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(figure())
