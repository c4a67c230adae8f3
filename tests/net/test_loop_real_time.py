"""Two loops in two threads on the host's clock, their ports joined directly."""

import asyncio
import random
import threading
import time

from net.loop_pair import NAMES

from kasou.net.loop import StackLoop
from kasou.net.stack import Host
from kasou.net.wire.address import mac


class End:
    """A `Port` that hands over on the sender's thread."""

    def __init__(self):
        self.peer = self.sink = None

    def send(self, frames):
        if self.peer.sink is not None:
            self.peer.sink(frames)

    def attach(self, sink):
        self.sink = sink


def loops():
    a, b = End(), End()
    a.peer, b.peer = b, a
    made = []
    for number, (name, end) in enumerate((("server", a), ("client", b)), 1):
        host = Host(random.Random(number))
        interface = host.add_interface("eth0", mac(f"52:54:00:00:00:0{number}"))
        host.add_address(interface, NAMES[name][0], 24)
        loop = StackLoop(host, names=NAMES)
        loop.attach(interface, end)
        made.append(loop)
    return made


def test_two_threads():
    server, client = loops()

    async def echo(reader, writer):
        while data := await reader.read(1 << 20):
            writer.write(data)
            await writer.drain()
        writer.close()

    server.run_until_complete(asyncio.start_server(echo, None, 7))
    thread = threading.Thread(target=server.run_forever)
    thread.start()
    data = random.Random(1).randbytes(3_000_000)

    async def main():
        before = time.monotonic()
        await asyncio.sleep(0.05)
        assert 0.05 <= time.monotonic() - before < 1
        assert await asyncio.to_thread(lambda: 7) == 7
        reader, writer = await asyncio.open_connection("server", 7)

        async def send():
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        assert await reader.read() == data
        await sending
        writer.close()
        await writer.wait_closed()

    try:
        client.run_until_complete(asyncio.wait_for(main(), 30))
    finally:
        server.call_soon_threadsafe(server.stop)
        thread.join(10)
        client.close()
        server.close()
    assert not thread.is_alive()
