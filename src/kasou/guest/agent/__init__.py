"""The agent in the guest, and how the host talks to it over vsock. Reading order:

- `protocol`  frames and their meaning; both sides
- `client`    the host's side of a request, without I/O
- `tree`      the host's side of file copies: tar streams
- `bundle`    the script and the unit that an image gets
- `serve`     in the guest: the event loop, connections and jobs
- `spawn`     in the guest: starting processes
- `trees`     in the guest: where copies go and come from
- `facts`     in the guest: version, ports, load
- `renew`     in the guest: corrections after a restore

The files for the guest import what Debian's python3-minimal has, nothing that is slow to load, and
of kasou only one another.
"""
