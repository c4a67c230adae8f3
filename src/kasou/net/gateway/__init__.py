"""The gateway: the way out of a virtual network for machines that have none of their own.

It is a host on the network (10.0.2.2 and fd00::2 by default) that answers for every other address:
connections of the guests end here, in our own TCP, and go on as sockets of the host; no root, no
tap device, no packet of the guest on the real network. Beside that it is the network's DHCP, router
advertiser and DNS.

Nothing here opens a socket either: what the host must do is asked of an `Outside`, which
`kasou.control.network` implements with sockets and a test with lists.

Reading order: `config`, `plan` (what addresses mean), `forward` (what `-p` says), `egress` (what
`--egress` says), `station` (a VM as the gateway sees it), `outside`, `dhcpv4`, `dhcpv6`, `names`,
`dns`, `services`, `tcp_relay`, `tcp_nat`, `udp_nat`, `ping_nat`, `gateway`, `capture`, `network`
(switch, ports and gateway together), `lan` (for tests).
"""
