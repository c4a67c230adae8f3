"""The monitor: virtual machines as things that can be kept, copied and moved.

Reading order:

- `snapshot`   a VM at rest in one file
- `zygote`     processes in milliseconds: how forks are born
"""
