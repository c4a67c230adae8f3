"""asyncio on our own TCP/IP: an event loop whose sockets are a `kasou.net.stack.Host`.

    loop = StackLoop(host, clock)                # host: interfaces and addresses as always
    loop.attach(interface, port)                 # a `kasou.ports.Port`: the wire it speaks on
    loop.names = {"mirror": [ip("10.0.2.3")]}    # or a function, or a coroutine function
    loop.run_until_complete(asyncssh.listen(...))

Unmodified servers and clients written for asyncio (asyncssh, uvicorn, httpx, aioftp, aiosmtpd,
telnetlib3, grpclib, pysnmp) run on it. What it has: streams, datagrams, TLS (asyncio's own over
our TCP), timers, executors, name resolution. What it refuses with `NotImplementedError`: signals,
subprocesses, pipes, and sockets or file descriptors of the operating system.

Time is the clock's: `MonotonicClock` waits for real, and several loops with a `VirtualClock` take
turns in one thread under a `Simulation`, which jumps to whatever is next.

Reading order: `clock`, `socket_view`, `names`, `transport`, `datagram`, `server`,
`stack_loop`, `simulation`.
"""

from kasou.net.loop.clock import Clock, MonotonicClock, VirtualClock
from kasou.net.loop.simulation import Cable, Simulation
from kasou.net.loop.stack_loop import StackLoop

__all__ = ["Cable", "Clock", "MonotonicClock", "Simulation", "StackLoop", "VirtualClock"]
