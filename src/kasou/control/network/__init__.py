"""Networks of VMs on this host: the gateway with a clock, a thread and sockets.

Reading order: `resolver` (the host's DNS servers and its own resolver), `host_sockets` (the
gateway's `Outside`), `user_network` (the thread, and the ports that VMs hold), `frame_socket`,
`server`, `client`, `named` (a named network as a process that VMs join), `guest` (for tests).
"""

from kasou.control.network.user_network import UserNetwork, UserPort

__all__ = ["UserNetwork", "UserPort"]
