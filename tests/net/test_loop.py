"""asyncio itself on the stack: streams, datagrams, TLS, backpressure, names, errors."""

import asyncio
import ssl
import subprocess

import pytest
from net.loop_pair import CLIENT, SERVER, Pair

from kasou.errors import LocalError
from kasou.net.wire.address import ip


@pytest.fixture
def pair():
    pair = Pair()
    yield pair
    pair.close()


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.mark.parametrize("host", ["server", SERVER, "fd00:9::1"])
def test_streams(pair, host):
    server = pair.serve(asyncio.start_server(echo, None, 7))
    assert server.sockets[0].getsockname()[1] == 7

    async def main():
        reader, writer = await asyncio.open_connection(host, 7)
        assert writer.get_extra_info("peername")[:2] == (ip_text(host), 7)
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()

    def ip_text(name):
        return SERVER if name == "server" else name

    pair.run(main())

    async def stop():
        server.close()
        await server.wait_closed()

    pair.serve(stop())


def test_a_megabyte_over_a_bad_wire():
    faults = {"loss": 0.05, "reorder": 0.05, "duplicate": 0.02, "corrupt": 0.02}
    pair = Pair(seed=5, delay_ns=5_000_000, **faults)
    pair.serve(asyncio.start_server(echo, None, 7))
    data = bytes(range(256)) * 4096

    async def main():
        reader, writer = await asyncio.open_connection("server", 7)

        async def send():
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        assert await reader.read() == data
        await sending
        writer.close()

    pair.run(main())
    pair.close()


def test_who_does_not_read_holds_the_writer_back(pair):
    released = pair.server.create_future()

    async def slow(reader, writer):
        reader._transport.pause_reading()
        await released
        reader._transport.resume_reading()
        total = len(await reader.read())
        writer.write(str(total).encode())
        writer.close()

    pair.serve(asyncio.start_server(slow, None, 7))

    async def main():
        reader, writer = await asyncio.open_connection("server", 7)
        chunks = 0
        while True:
            writer.write(bytes(100_000))
            chunks += 1
            try:
                await asyncio.wait_for(writer.drain(), 5)
            except TimeoutError:
                break
            assert chunks < 100
        pair.server.call_soon_threadsafe(released.set_result, None)
        await writer.drain()
        writer.write_eof()
        assert int(await reader.read()) == chunks * 100_000
        writer.close()

    pair.run(main())


def test_refused_unreachable_and_unknown(pair):
    async def main():
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("server", 9)
        with pytest.raises(OSError, match="unreachable"):
            await asyncio.open_connection("192.0.2.1", 9)
        with pytest.raises(OSError, match="not known"):
            await asyncio.open_connection("nobody", 9)
        with pytest.raises(OSError):
            await asyncio.open_connection("10.9.0.77", 9)  # no such neighbor

    pair.run(main())


def test_ports_are_in_use_once(pair):
    pair.serve(asyncio.start_server(echo, None, 7))
    with pytest.raises(OSError, match="in use"):
        pair.serve(asyncio.start_server(echo, None, 7))


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answer=None):
        self.answer, self.got = answer, asyncio.Queue()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.got.put_nowait((data, addr))
        if self.answer:
            self.transport.sendto(self.answer(data), addr)

    def error_received(self, exc):
        self.got.put_nowait((exc, None))


def test_datagrams(pair):
    pair.serve(
        pair.server.create_datagram_endpoint(
            lambda: Datagrams(lambda data: data[::-1]), local_addr=("0.0.0.0", 53)
        )
    )

    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            Datagrams, remote_addr=("server", 53)
        )
        transport.sendto(b"abc")
        assert await protocol.got.get() == (b"cba", (SERVER, 53))
        assert transport.get_extra_info("sockname")[0] == CLIENT
        transport.sendto(bytes(5000))  # in fragments
        assert (await protocol.got.get())[0] == bytes(5000)
        transport.close()
        transport, protocol = await loop.create_datagram_endpoint(
            Datagrams, remote_addr=("server", 54)
        )
        transport.sendto(b"nobody there")
        assert isinstance((await protocol.got.get())[0], ConnectionRefusedError)

    pair.run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    where = tmp_path_factory.mktemp("tls")
    key, cert = where / "key.pem", where / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", cert, "-days", "3", "-subj", "/CN=server",
         "-addext", "subjectAltName=DNS:server"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def contexts(certificate):
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*certificate)
    return serving, ssl.create_default_context(cafile=certificate[0])


def test_tls_from_the_start(pair, certificate):
    serving, trusting = contexts(certificate)
    pair.serve(asyncio.start_server(echo, None, 443, ssl=serving))

    async def main():
        reader, writer = await asyncio.open_connection("server", 443, ssl=trusting)
        assert writer.get_extra_info("peercert")
        writer.write(bytes(300_000))
        assert await reader.readexactly(300_000) == bytes(300_000)
        writer.close()
        await writer.wait_closed()

    pair.run(main())


def test_start_tls_later(pair, certificate):
    serving, trusting = contexts(certificate)

    async def handle(reader, writer):
        writer.write(b"ready\n")
        await writer.start_tls(serving)
        writer.write(await reader.readline())
        writer.close()

    pair.serve(asyncio.start_server(handle, None, 25))

    async def main():
        reader, writer = await asyncio.open_connection("server", 25)
        assert await reader.readline() == b"ready\n"
        await writer.start_tls(trusting, server_hostname="server")
        writer.write(b"secret\n")
        assert await reader.readline() == b"secret\n"
        writer.close()

    pair.run(main())


def test_names_may_be_a_coroutine(pair):
    async def names(name):
        await asyncio.sleep(1)
        return [ip(SERVER)] if name == "example.org" else []

    pair.client.names = names
    pair.serve(asyncio.start_server(echo, None, 7))

    async def main():
        _, writer = await asyncio.open_connection("example.org", 7)
        writer.close()

    pair.run(main())


def test_executors_run_while_virtual_time_stands(pair):
    async def main():
        loop = asyncio.get_running_loop()
        before = loop.time()
        timer = asyncio.ensure_future(asyncio.sleep(3600))
        assert await loop.run_in_executor(None, sum, range(1000)) == 499500
        assert not timer.done() and loop.time() - before < 3600
        await timer
        assert loop.time() - before >= 3600

    pair.run(main())


def test_a_simulation_that_can_never_end_says_so(pair):
    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(LocalError, match="nothing will ever come"):
        pair.run(main())


def test_signals_and_sockets_of_the_system_are_refused(pair):
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(NotImplementedError):
            loop.add_signal_handler(15, print)
        with pytest.raises(NotImplementedError):
            await loop.create_connection(asyncio.Protocol, sock=object())

    pair.run(main())
