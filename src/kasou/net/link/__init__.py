"""The link layer: stations on one wire, who they are, and the switch between wires.

Reading order: `switch`, `neighbor` (the cache behind both ARP and Neighbor Discovery), `offload`
(what a frame with an unfinished checksum or a `Gso` stands for).
"""
