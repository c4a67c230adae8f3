"""The root file system of the default guest: busybox, a few drivers, and a shell on the console.

    /init         mounts /proc, /sys and /dev, loads the drivers, then becomes busybox's init
    /sbin/init    (busybox) keeps a login shell on the console, with job control
    /sbin/poweroff, reboot, halt    ask the kernel at once: there are no services to stop

`init` is told the console's own name (`ttyS0`, `hvc0`), for `/dev/console` cannot be a controlling
terminal and job control needs one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kasou.guest.initramfs import Entry, Initramfs
from kasou.images.modules import Module, index_alias, index_dep, unpacked

INIT = """\
#!/bin/sh
# The first program of this guest. Made by kasou.
# Words like COLUMNS=120 on the kernel's command line arrive here as variables.
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs -o mode=0755 devtmpfs /dev 2>/dev/null
exec 0</dev/console 1>/dev/console 2>/dev/console
mkdir -p /dev/pts
mount -t devpts -o mode=0620,gid=5 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=0755 tmpfs /run
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
for module in @MODULES@; do insmod /lib/modules/@RELEASE@/$module.ko; done
hostname kasou
ip link set lo up 2>/dev/null
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -i eth0 -t 5 -n -q -s /etc/udhcpc/default.script >/dev/null 2>&1 &
fi
stty columns ${COLUMNS:-80} rows ${LINES:-24}
unset COLUMNS LINES
read -r active </sys/class/tty/console/active
echo "${active##* }::respawn:-/bin/sh" >/etc/inittab
exec /sbin/init
"""

PROFILE = """\
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root USER=root PAGER=more ENV=/etc/shrc
cd /root
cat /etc/motd
"""

# busybox's shell prefers its own applets to files, so these have to be functions there.
SHRC = """\
PS1='root@kasou:\\w# '
poweroff() { /usr/sbin/poweroff; }
halt() { /usr/sbin/halt; }
reboot() { /usr/sbin/reboot; }
"""

MOTD = """\

Linux {release} (Debian {version}), a root shell inside kasou. Try:

    cat /proc/cpuinfo       the processor that kasou is
    cat /proc/interrupts    its devices at work
    dmesg | head -30        how the kernel found the board
{disk}    poweroff                back to where you came from

"""

DISK_HINT = "    mount /dev/vda /mnt     the disk given with --drive\n"

LEASE = """\
#!/bin/sh
# Takes what the DHCP server gave. (udhcpc; busybox, examples/udhcp)
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev $interface
ip addr add $ip/$mask dev $interface
[ -z "$router" ] || ip route replace default via ${router%% *} dev $interface
: >/etc/resolv.conf
for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
"""

RESTART = {"poweroff": "poweroff", "halt": "poweroff", "reboot": "reboot"}

FILES = {
    "etc/hostname": "kasou\n",
    "etc/hosts": "127.0.0.1 localhost kasou\n::1 localhost\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/filesystems": "ext4\n",
}


@dataclass(frozen=True, slots=True)
class Userland:
    """What goes into the root file system.

    `binaries` holds `usr/bin/busybox` and whatever that needs to run; `applets` are the names it
    answers to; of `modules` those named in `at_boot` are loaded by `/init`, in this order, and stored unpacked.
    """

    binaries: Sequence[Entry]
    applets: Sequence[str]
    modules: Sequence[Module]
    at_boot: Sequence[str]
    release: str
    version: str


def build(userland: Userland) -> Initramfs:
    """The root file system, with `bin`, `sbin` and `lib` merged into `usr` as Debian has them."""
    root = Initramfs()
    for path in ("dev", "proc", "sys", "run", "mnt", "etc", "usr/bin", "usr/sbin", "usr/lib"):
        root.directory(path)
    root.directory("root", 0o700)
    root.directory("tmp", 0o1777)
    for path in ("bin", "sbin", "lib"):
        root.symlink(path, f"usr/{path}")
    # The kernel opens /dev/console before /init can mount devtmpfs.
    root.character_device("dev/console", 5, 1)
    root.character_device("dev/null", 1, 3, 0o666)
    for entry in userland.binaries:
        root.add(entry)
    _link_applets(root, userland.applets)
    for command, applet in RESTART.items():
        script = f"#!/bin/sh\nsync\nexec /usr/bin/busybox {applet} -f\n"
        root.entries.pop(f"usr/bin/{command}", None)
        root.file(f"usr/sbin/{command}", script.encode(), 0o755)
    _install_modules(root, userland)
    for path, text in FILES.items():
        root.file(path, text.encode())
    has_disk = any(module.name == "virtio_blk" for module in userland.modules)
    motd = MOTD.format(
        release=userland.release, version=userland.version, disk=DISK_HINT if has_disk else ""
    )
    root.file("etc/motd", motd.encode())
    root.file("etc/profile", PROFILE.encode())
    root.file("etc/udhcpc/default.script", LEASE.encode(), 0o755)
    root.file("etc/shrc", SHRC.encode())
    init = INIT.replace("@MODULES@", " ".join(userland.at_boot))
    root.file("init", init.replace("@RELEASE@", userland.release).encode(), 0o755)
    return root


def _link_applets(root: Initramfs, applets: Sequence[str]) -> None:
    present = {path.rpartition("/")[2] for path in root.entries}
    for applet in applets:
        if applet not in present:
            root.symlink(f"usr/bin/{applet}", "busybox")
    root.symlink("usr/sbin/init", "../bin/busybox")
    for command in ("modprobe", "insmod"):  # the kernel asks for /sbin/modprobe by this path
        if f"usr/sbin/{command}" not in root.entries:
            root.symlink(f"usr/sbin/{command}", "../bin/busybox")


def _install_modules(root: Initramfs, userland: Userland) -> None:
    directory = f"usr/lib/modules/{userland.release}"
    root.directory(directory)
    modules = [
        unpacked(module) if module.name in userland.at_boot else module
        for module in userland.modules
    ]
    for module in modules:
        root.file(f"{directory}/{module.file}", module.data)
    root.file(f"{directory}/modules.dep", index_dep(modules).encode())
    root.file(f"{directory}/modules.alias", index_alias(modules).encode())
