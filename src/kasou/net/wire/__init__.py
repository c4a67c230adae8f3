"""Codecs: bytes to values and back, for every format that the layers speak.

A codec checks what must hold for the value to mean anything (lengths, versions, checksums) and
raises `ParseError`, nothing else; whether the value makes sense here and now is the layer's
business. Emitting what was parsed gives the same bytes back, but for fields that a format calls
reserved. Addresses are packed: `bytes` of 4, 6 or 16.

Reading order: `error`, `address`, `checksum`, `ethernet`, `arp`, `ipv4`, `ipv6`, `icmpv4`,
`icmpv6`, `ndp`, `udp`, `tcp`, `dhcpv4`, `dhcpv6`, `pcapng`. DNS messages are dnspython's.
"""
