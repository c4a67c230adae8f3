"""Unmodified servers and clients on the stack's event loop, across a simulated wire."""

import asyncio
import contextlib

import pytest
from net.loop_pair import SERVER, Pair


@pytest.fixture(params=["perfect", "lossy"])
def pair(request):
    faults = {"loss": 0.03, "reorder": 0.05, "delay_ns": 2_000_000}
    pair = Pair(seed=3, **(faults if request.param == "lossy" else {}))
    yield pair
    pair.close()


def test_asyncssh(pair, tmp_path):
    asyncssh = pytest.importorskip("asyncssh")
    host_key, user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    authorized = asyncssh.import_authorized_keys(user_key.export_public_key().decode())
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)

    async def handle(process):
        process.stdout.write(f"you said {await process.stdin.readline()}")
        process.exit(7)

    server = pair.serve(
        asyncssh.listen(
            "", 22, server_host_keys=[host_key], authorized_client_keys=authorized,
            process_factory=handle, sftp_factory=True, allow_scp=True,
        )
    )  # fmt: skip

    async def main():
        async with asyncssh.connect(
            "server", 22, username="me", client_keys=[user_key], known_hosts=None, config=None
        ) as connection:
            result = await connection.run("anything", input="hello\n")
            assert (result.stdout, result.exit_status) == ("you said hello\n", 7)
            async with connection.start_sftp_client() as sftp:
                await sftp.get(str(tmp_path / "file"), str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()

    pair.run(main())
    server.close()


def test_uvicorn_and_httpx(pair):
    uvicorn = pytest.importorskip("uvicorn")
    httpx = pytest.importorskip("httpx")

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"x-peer", scope["client"][0].encode())]})  # fmt: skip
        await send({"type": "http.response.body", "body": body[::-1]})

    config = uvicorn.Config(app, host=SERVER, port=80, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # they belong to pytest
    serving = pair.server.create_task(server.serve())

    async def main():
        async with httpx.AsyncClient(base_url="http://server", trust_env=False) as client:
            while not server.started:
                await asyncio.sleep(0.1)
            for n in (0, 10, 500_000):
                answer = await client.post("/", content=bytes(n) + b"abc")
                assert answer.status_code == 200 and answer.content == b"cba" + bytes(n)
                assert answer.headers["x-peer"] == "10.9.0.2"
            answers = await asyncio.gather(*(client.post("/", content=b"x") for _ in range(20)))
            assert all(answer.content == b"x" for answer in answers)
        server.should_exit = True

    pair.run(main())
    pair.serve(_finish(serving))


async def _finish(task):
    await asyncio.wait_for(task, 30)


def test_dnslib_server_and_dnspython_client(pair):
    dnslib = pytest.importorskip("dnslib")
    import dns.message
    import dns.rdatatype

    zone = dnslib.RR.fromZone("www.example. 60 A 192.0.2.7\nwww.example. 60 AAAA 2001:db8::7")

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            request = dnslib.DNSRecord.parse(data)
            reply = request.reply()
            for record in zone:
                if record.rname == request.q.qname and record.rtype == request.q.qtype:
                    reply.add_answer(record)
            self.transport.sendto(reply.pack(), addr)

    pair.serve(pair.server.create_datagram_endpoint(Server, local_addr=("0.0.0.0", 53)))

    class Client(asyncio.DatagramProtocol):
        def __init__(self):
            self.answer = asyncio.get_running_loop().create_future()

        def datagram_received(self, data, addr):
            if not self.answer.done():
                self.answer.set_result(dns.message.from_wire(data))

    async def ask(name, kind):
        query = dns.message.make_query(name, kind)
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            Client, remote_addr=("server", 53)
        )
        for _ in range(10):
            transport.sendto(query.to_wire())
            with contextlib.suppress(TimeoutError):
                answer = await asyncio.wait_for(asyncio.shield(protocol.answer), 1)
                transport.close()
                return [str(each) for rrset in answer.answer for each in rrset]
        raise AssertionError("no answer")

    async def main():
        assert await ask("www.example.", "A") == ["192.0.2.7"]
        assert await ask("www.example.", "AAAA") == ["2001:db8::7"]
        assert await ask("mail.example.", "A") == []

    pair.run(main())


def test_aioftp(pair, tmp_path):
    aioftp = pytest.importorskip("aioftp")
    home = tmp_path / "home"
    home.mkdir()
    (home / "big").write_bytes(bytes(range(256)) * 2000)
    (tmp_path / "new").write_bytes(b"fresh" * 1000)
    server = aioftp.Server([aioftp.User("me", "secret", base_path=home)])
    pair.serve(server.start(SERVER, 21))

    async def main():
        async with aioftp.Client.context("server", 21, "me", "secret") as client:
            assert [str(path) for path, _ in await client.list()] == ["big"]
            await client.download("big", tmp_path / "got", write_into=True)
            await client.upload(tmp_path / "new", "new", write_into=True)
        assert (tmp_path / "got").read_bytes() == (home / "big").read_bytes()
        assert (home / "new").read_bytes() == b"fresh" * 1000

    pair.run(main())
    pair.serve(server.close())


def test_aiosmtpd(pair):
    smtp = pytest.importorskip("aiosmtpd.smtp")
    received = []

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            received.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
            return "250 OK"

    pair.serve(
        pair.server.create_server(lambda: smtp.SMTP(Handler(), hostname="mx"), "0.0.0.0", 25)
    )
    body = b"Subject: hello\r\n\r\n" + b"line\r\n" * 20_000

    async def main():
        reader, writer = await asyncio.open_connection("server", 25)

        async def expect(code):
            while (line := await reader.readline())[3:4] == b"-":
                pass
            assert line.startswith(code), line

        await expect(b"220")
        for command, code in (
            (b"EHLO me", b"250"),
            (b"MAIL FROM:<a@example.org>", b"250"),
            (b"RCPT TO:<b@example.org>", b"250"),
            (b"DATA", b"354"),
            (body + b".", b"250"),
            (b"QUIT", b"221"),
        ):
            writer.write(command + b"\r\n")
            await writer.drain()
            await expect(code)
        writer.close()

    pair.run(main())
    assert received == [("a@example.org", ["b@example.org"], body)]


def test_telnetlib3(pair):
    telnetlib3 = pytest.importorskip("telnetlib3")

    async def shell(reader, writer):
        writer.write("login: ")
        name = (await reader.readline()).strip()
        writer.write(f"welcome {name}\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)  # telnetlib3's client forgets what comes just before the end
        writer.close()

    pair.serve(
        telnetlib3.create_server(host=SERVER, port=23, shell=shell, connect_maxwait=1, timeout=300)
    )

    async def main():
        reader, writer = await telnetlib3.open_connection(
            "server", 23, connect_minwait=0.1, connect_maxwait=1, encoding="utf8"
        )
        text = ""
        while "login: " not in text:
            text += await reader.read(100)
        writer.write("root\r\n")
        while "welcome root" not in text:
            piece = await reader.read(100)
            assert piece, text
            text += piece
        writer.close()

    pair.run(main())


def test_grpclib(pair):
    pytest.importorskip("grpclib")
    from grpclib.client import Channel, UnaryUnaryMethod
    from grpclib.const import Cardinality, Handler
    from grpclib.encoding.base import CodecBase
    from grpclib.server import Server

    class Raw(CodecBase):
        __content_subtype__ = "raw"

        def encode(self, message, message_type):
            return message

        def decode(self, data, message_type):
            return data

    class Reverse:
        async def call(self, stream):
            await stream.send_message((await stream.recv_message())[::-1])

        def __mapping__(self):
            return {"/test/Reverse": Handler(self.call, Cardinality.UNARY_UNARY, bytes, bytes)}

    async def start():
        server = Server([Reverse()], codec=Raw())
        await server.start(SERVER, 50051)
        return server

    server = pair.serve(start())

    async def main():
        channel = Channel("server", 50051, codec=Raw())
        method = UnaryUnaryMethod(channel, "/test/Reverse", bytes, bytes)
        for message in (b"abc", bytes(range(256)) * 1000):
            assert await method(message) == message[::-1]
        channel.close()

    pair.run(main())

    async def stop():
        server.close()
        await server.wait_closed()

    pair.serve(stop())


def test_pysnmp(pair):
    pytest.importorskip("pysnmp")
    from pysnmp.carrier.asyncio.dgram import udp
    from pysnmp.entity import config, engine
    from pysnmp.entity.rfc3413 import cmdrsp, context
    from pysnmp.hlapi.v3arch import asyncio as snmp

    async def serve():
        agent = engine.SnmpEngine()
        transport = udp.UdpTransport().open_server_mode((SERVER, 161))
        config.add_transport(agent, udp.DOMAIN_NAME, transport)
        config.add_v1_system(agent, "area", "public")
        config.add_vacm_user(agent, 2, "area", "noAuthNoPriv", (1, 3, 6, 1, 2, 1))
        cmdrsp.GetCommandResponder(agent, context.SnmpContext(agent))
        return agent

    agent = pair.serve(serve())

    async def main():
        target = await snmp.UdpTransportTarget.create(("server", 161), timeout=2, retries=5)
        error, status, _, bindings = await snmp.get_cmd(
            snmp.SnmpEngine(), snmp.CommunityData("public"), target, snmp.ContextData(),
            snmp.ObjectType(snmp.ObjectIdentity("1.3.6.1.2.1.1.1.0")),
        )  # fmt: skip
        assert not error and not status, (error, status)
        assert "SNMP" in str(bindings[0][1]), bindings

    pair.run(main())

    async def stop():
        agent.close_dispatcher()
        await asyncio.sleep(1)

    pair.serve(stop())
