"""The network: our own TCP/IP, sans-IO in five layers, and the gateway built on it.

Nothing here has a socket, a thread or a clock. Every part takes bytes and the time
(`receive(..., now)`, `handle_timer(now)`, ns) and gives back bytes and when it wants to be called
again (`to_send(now)`, `deadline()`); randomness is an `rng` argument.

Reading order, bottom up: `wire` (bytes to values and back), `physical`, `link`, `network`,
`transport`, `stack` (a host made of them), `loop` (asyncio on a host), `gateway`.
"""
