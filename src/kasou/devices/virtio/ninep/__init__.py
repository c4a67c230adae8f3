"""A directory of the host as a file system of the guest: 9P2000.L. Reading order:

- `messages`   the protocol's messages: a table
- `codec`      their bytes
- `directory`  the host's directory, and how nothing leaves it
- `session`    what a client has open, and the answer to each message

The protocol: 9P2000 (Plan 9 manual, section 5) with the `.L` messages for Linux (diod's
`protocol.md`, Linux `include/net/9p/9p.h`).
"""
