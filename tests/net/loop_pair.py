"""Two hosts, each with an event loop of its own, on one cable in virtual time."""

import random

from kasou.net.loop import Cable, Simulation, StackLoop, VirtualClock
from kasou.net.physical.link import SimulatedLink
from kasou.net.stack import Host
from kasou.net.wire.address import ip, mac

NAMES = {"server": [ip("10.9.0.1")], "client": [ip("10.9.0.2")]}
SERVER, CLIENT = "10.9.0.1", "10.9.0.2"


class Pair(Simulation):
    """`server` and `client`; `run(coroutine)` runs it on the client while both loops turn."""

    def __init__(self, seed=1, **faults):
        super().__init__(VirtualClock(10**12))
        rng = random.Random(seed)
        links = [SimulatedLink(rng, **faults) if faults else None for _ in range(2)]
        cable = Cable(self.clock, *links)
        self.cables.append(cable)
        self.server, self.client = (
            self.add(rng, name, number, end)
            for number, (name, end) in enumerate((("server", cable.a), ("client", cable.b)), 1)
        )

    def add(self, rng, name, number, end):
        host = Host(random.Random(rng.random()))
        interface = host.add_interface("eth0", mac(f"52:54:00:00:00:0{number}"))
        host.add_address(interface, NAMES[name][0], 24)
        host.add_address(interface, ip(f"fd00:9::{number}"), 64)
        loop = StackLoop(host, self.clock, NAMES)
        loop.attach(interface, end)
        self.loops.append(loop)
        return loop

    def run(self, main):
        return self.run_until_complete(self.client, main)

    def serve(self, main):
        return self.run_until_complete(self.server, main)

    def close(self):
        for loop in self.loops:
            loop.close()
