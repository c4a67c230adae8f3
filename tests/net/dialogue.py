"""TCP tests as dialogues, in the spirit of packetdrill: what the peer sends, what we must answer.

    d = Dialogue.listening()
    d.peer("SYN seq=0 win=65535 mss=1000")
    d.expect("SYN|ACK seq=0 ack=1")
    d.peer("ACK seq=1 ack=1")
    d.passes(ms=200); d.expect("ACK|PSH seq=1 len=100")

Sequence numbers count from each side's initial one, so a SYN is 0 and the first byte 1; the peer's
windows are as on the wire. A line may name: flags, seq, ack, win, len, mss, ws, sackok, ts=VAL/ECHO
(milliseconds from when the dialogue began), sack=A-B,C-D. `expect` compares only what it names.
"""

import random

from kasou.net.transport.tcp import Endpoint, State, Tcp, TcpConfig
from kasou.net.wire import tcp as wire
from kasou.net.wire.checksum import checksum, pseudo_header

US, PEER = Endpoint(b"\x0a\x00\x02\x02", 80), Endpoint(b"\x0a\x00\x02\x0f", 4000)
MS = 1_000_000
PEER_ISN = 0xFFFF_FF00  # wraps early in every dialogue
MASK = 0xFFFF_FFFF
FLAGS = {name: 1 << bit for bit, name in enumerate(wire.FLAG_NAMES)} | {"-": 0}


class Dialogue:
    def __init__(self, **config):
        self.tcp = Tcp(random.Random(7), config=TcpConfig(**{"gso": False} | config))
        self.start = self.now = 10_000_000 * MS
        self.isn = 0
        self.connection = None
        self.out = []
        self.events = []
        self.ts_base = None

    @classmethod
    def listening(cls, **config):
        d = cls(**config)
        d.tcp.listen(None, US.port, d.take)
        return d

    @classmethod
    def established(cls, options="mss=1000", win=65535, **config):
        """Accepted, with the peer's SYN options; by default none but the MSS."""
        d = cls.listening(**config)
        d.peer(f"SYN seq=0 win={win} {options}")
        d.expect("SYN|ACK seq=0 ack=1")
        d.passes(ms=100)
        d.peer(f"ACK seq=1 ack=1 win={win}" + (" ts=100" if "ts" in options else ""))
        d.expect_nothing()
        assert d.connection.state is State.ESTABLISHED
        return d

    @classmethod
    def connecting(cls, **config):
        d = cls(**config)
        d.take(d.tcp.connect(US, PEER, d.now))
        d.flush()
        return d

    def take(self, connection):
        self.connection = connection
        connection.on_event = lambda c, event: self.events.append(event)

    # ---- the peer

    def peer(self, line, payload=None):
        segment = self.parse(line, PEER.port, US.port)
        if payload is not None:
            segment.payload = payload
        header = bytearray(wire.emit_header(segment))
        data = bytes(header) + segment.payload
        initial = pseudo_header(PEER.address, US.address, 6, len(data))
        header[16:18] = checksum(data, initial).to_bytes(2, "big")
        self.raw(bytes(header) + segment.payload)

    def raw(self, data):
        self.tcp.receive(PEER.address, US.address, data, self.now)
        self.tcp.deliver_events()
        self.flush()

    def parse(self, line, source, destination):
        flags, *tokens = line.split()
        bits = sum(FLAGS[name] for name in flags.split("|"))
        names = dict(token.partition("=")[::2] for token in tokens)
        segment = wire.TcpSegment(source, destination, 0, flags=bits, window=65535)
        segment.sequence = (PEER_ISN + int(names.get("seq", 0))) & MASK
        if bits & wire.ACK:
            segment.acknowledgment = (self.isn + int(names.get("ack", 0))) & MASK
        segment.window = int(names.get("win", 65535))
        segment.payload = bytes(i & 0xFF for i in range(int(names.get("len", 0))))
        if "mss" in names:
            segment.mss = int(names["mss"])
        if "ws" in names:
            segment.window_scale = int(names["ws"])
        segment.sack_permitted = "sackok" in names
        if "ts" in names:
            value, _, echo = names["ts"].partition("/")
            echoed = (int(echo) + self.ts_base) & MASK if echo else self.last_ts
            segment.timestamps = (int(value or 0), echoed)
        if "sack" in names:
            segment.sack = tuple(
                tuple((self.isn + int(edge)) & MASK for edge in block.split("-"))
                for block in names["sack"].split(",")
            )
        return segment

    last_ts = 0

    # ---- we

    def flush(self):
        for unit in self.tcp.to_send(self.now):
            for piece in unit.cut():
                data = piece.checksummed()
                assert wire.is_intact(US.address, PEER.address, data)
                segment = wire.parse(data)
                if segment.flags & wire.SYN:
                    self.isn = segment.sequence
                if segment.timestamps:
                    if self.ts_base is None:
                        self.ts_base = segment.timestamps[0]
                    self.last_ts = segment.timestamps[0]
                self.out.append(segment)

    def say(self, segment):
        """A segment of ours as a line, everything named."""
        text = wire.flag_text(segment.flags)
        text += f" seq={(segment.sequence - self.isn) & MASK}"
        if segment.flags & wire.ACK:
            text += f" ack={(segment.acknowledgment - PEER_ISN) & MASK}"
        text += f" win={segment.window} len={len(segment.payload)}"
        if segment.mss is not None:
            text += f" mss={segment.mss}"
        if segment.window_scale is not None:
            text += f" ws={segment.window_scale}"
        if segment.sack_permitted:
            text += " sackok"
        if segment.timestamps:
            text += f" ts={(segment.timestamps[0] - self.ts_base) & MASK}/{segment.timestamps[1]}"
        if segment.sack:
            blocks = (f"{(a - PEER_ISN) & MASK}-{(b - PEER_ISN) & MASK}" for a, b in segment.sack)
            text += " sack=" + ",".join(blocks)
        return text

    def expect(self, *lines):
        """The next segments, in order, and no more of them."""
        said = [self.say(segment) for segment in self.out]
        self.out.clear()
        assert len(said) == len(lines), said
        for line, got in zip(lines, said, strict=True):
            flags, *tokens = line.split()
            assert got.split()[0] == "|".join(sorted(flags.split("|"), key=FLAGS.get)), said
            missing = [token for token in tokens if token not in got.split()]
            assert not missing, (line, said)

    def expect_nothing(self):
        self.expect()

    def passes(self, ms, until_said=False):
        """Let time pass, running what is due at its time."""
        end = self.now + int(ms * MS)
        while (at := self.tcp.deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            self.tcp.handle_timer(self.now)
            self.tcp.deliver_events()
            self.flush()
            if until_said and self.out:
                return
        self.now = end

    @property
    def elapsed(self):
        return (self.now - self.start) / MS

    # ---- our user

    def write(self, n):
        taken = self.connection.write(bytes(i & 0xFF for i in range(n)))
        self.flush()
        return taken

    def read(self):
        got = b""
        while piece := self.connection.read():
            got += piece
        self.flush()
        return got

    def call(self, name, *args):
        getattr(self.connection, name)(*args)
        self.tcp.deliver_events()
        self.flush()

    @property
    def state(self):
        return self.connection.state
