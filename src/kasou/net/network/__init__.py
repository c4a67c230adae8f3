"""The network layer: packets from address to address, over links of different size.

Reading order: `routing`, `path_mtu`, `fragmentation`, `reassembly`, `icmp` (errors, and when none
may be sent), `interface` (a station on a link: frames to packets and back, ARP and Neighbor
Discovery), `advertiser` (a router's side of RA) and `slaac` (a host's).
"""
