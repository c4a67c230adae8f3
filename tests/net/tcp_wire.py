"""Two hosts' TCP joined by two simulated links, in virtual time."""

import random

from kasou.net.physical.link import SimulatedLink
from kasou.net.transport.tcp import Endpoint, Event, State, Tcp, TcpConfig

CLIENT = Endpoint(b"\x0a\x00\x02\x0f", 0)
SERVER = Endpoint(b"\x0a\x00\x02\x02", 80)
MS = 1_000_000
SECOND = 1_000_000_000


def check(c):
    """What holds of a connection between any two calls."""
    board = c.scoreboard
    assert c.snd_una <= c.snd_nxt <= c.send_buffer.end + 1
    assert c.rcv_nxt <= c.rcv_adv + 1
    if c.state in (State.CLOSED, State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED):
        return
    position = c.snd_una
    for record in board.records:
        assert record.start == position < record.end
        assert not (record.lost and record.sacked)
        position = record.end
    assert position == c.snd_nxt
    assert board.outstanding == c.snd_nxt - c.snd_una
    assert board.sacked == sum(r.size for r in board.records if r.sacked)
    assert board.lost == sum(r.size for r in board.records if r.lost)
    assert board.retransmitted == sum(r.retransmitted for r in board.records)
    assert c.congestion.cwnd >= c.mss
    if board.outstanding:
        assert c.timer is not None, f"{c}: data in flight and no timer"


class Wire:
    """`client` and `server` and the links between them; `now` advances to whatever is next."""

    def __init__(self, seed, config=None, server_config=None, **faults):
        rng = random.Random(seed)
        self.client = Tcp(random.Random(seed + 1), config=config or TcpConfig())
        self.server = Tcp(random.Random(seed + 2), config=server_config or config or TcpConfig())
        self.up = SimulatedLink(random.Random(rng.random()), **faults)
        self.down = SimulatedLink(random.Random(rng.random()), **faults)
        self.now = rng.randrange(1 << 40)
        self.packets = 0

    def flush(self):
        for host, link in ((self.client, self.up), (self.server, self.down)):
            host.deliver_events()
            for unit in host.to_send(self.now):
                for segment in unit.cut():
                    self.packets += 1
                    link.send(segment.checksummed(), self.now)

    def step(self):
        """Go to the next thing that happens; False when nothing ever will."""
        self.flush()
        client, server = self.client, self.server
        parts = (self.up, self.down, client, server)
        due = [at for part in parts if (at := part.deadline()) is not None]
        if not due:
            return False
        self.now = max(self.now, min(due))
        for link, host, source, to in (
            (self.up, server, CLIENT, SERVER),
            (self.down, client, SERVER, CLIENT),
        ):
            for data in link.receive(self.now):
                host.receive(source.address, to.address, data, self.now)
            host.handle_timer(self.now)
        for host in (client, server):
            for c in list(host.connections.values()):
                check(c)
        return True


class Sender:
    """Writes `data` as room comes, closes, and keeps what it receives."""

    def __init__(self, data, rng=None):
        self.data, self.at, self.rng = data, 0, rng
        self.received = bytearray()
        self.events = []

    def attach(self, c):
        c.on_event = self.on_event
        if c.state is not State.SYN_SENT:
            self.on_event(c, Event.ESTABLISHED)

    def on_event(self, c, event):
        self.events.append(event)
        if event in (Event.ESTABLISHED, Event.WRITABLE):
            self.push(c)
        elif event is Event.READABLE:
            while piece := c.read(self.rng.randrange(1, 9000) if self.rng else None):
                self.received += piece

    def push(self, c):
        while self.at < len(self.data):
            n = self.rng.randrange(1, 20000) if self.rng else 65536
            n = len(self.data[self.at : self.at + n])
            taken = c.write(self.data[self.at : self.at + n])
            self.at += taken
            if taken < n:
                return
        c.close()
