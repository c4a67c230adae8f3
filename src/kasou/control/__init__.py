"""The operations on a running machine, and what attaches it to the outside.

No daemon: a VM is one process, with a control socket. Reading order:

- `vm_config`     what a VM is made of
- `vm_directory`  its files, its lock, and whether it runs
- `operations`    what can be asked of one that runs, each typed once
- `messages`      how requests and answers travel
- `running_vm`    the VM inside its process: carries the operations out
- `assembly`      from a configuration to a machine with disks and network
- `serial`        the console's log and those attached to it
- `server`        the control socket, on a thread of its own
- `process`       the process: `python -m kasou.control.process`
- `start`         starting it; `client`, asking it; `socket_path`, reaching it
- `terminal`      the user's terminal, lent to a guest
"""
