"""The files that make a set of Debian's packages the guest that kasou promises.

A root shell on the serial console, a network by DHCP, ssh with keys of its own made at the first boot,
kasou's agent, and nothing that a machine of this kind does not need: `MASKED` says what is switched off.
"""

from __future__ import annotations

from kasou.guest.agent.bundle import SCRIPT_PATH, UNIT_NAME, UNIT_PATH, agent_script, systemd_unit
from kasou.images.unpacked import PATH_EXCLUDES

PACKAGES = (
    "systemd-sysv", "udev", "dbus", "systemd-resolved", "libnss-myhostname",
    "apt", "ca-certificates", "debian-archive-keyring", "openssh-server", "python3-minimal",
    "kmod", "e2fsprogs", "iproute2", "iputils-ping", "procps", "netbase", "less", "nano",
)  # fmt: skip
KERNEL = "linux-image-riscv64"
"""Depends on the newest kernel, which alone is installed: an upgrade must not bring modules that do
not fit the kernel that kasou loads."""
WITHOUT = ("initramfs-tools", "linux-initramfs-tool")
"""The kernel asks for something that makes initrds; kasou brings the initrd, and `STANZAS` say so."""
STANZAS = {
    "kasou-guest": """\
Package: kasou-guest
Status: install ok installed
Priority: optional
Section: admin
Maintainer: kasou <kasou@localhost>
Architecture: all
Version: 1
Provides: linux-initramfs-tool
Description: what kasou brings into its guests
 The kernel's initrd, which kasou loads, and settings for a machine of this kind.
"""
}

MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "getty-static.service",
    "systemd-networkd-wait-online.service", "systemd-pstore.service", "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service", "ldconfig.service", "man-db.timer",
    "systemd-binfmt.service", "systemd-rfkill.service", "systemd-rfkill.socket",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount",
    "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
    "systemd-tpm2-setup.service", "systemd-tpm2-setup-early.service", "rc-local.service",
    "systemd-update-done.service", "systemd-boot-update.service",
)  # fmt: skip
SSH_KEYS_UNIT = "kasou-ssh-keys.service"
ENABLED = ("systemd-networkd.service", "systemd-resolved.service", UNIT_NAME, SSH_KEYS_UNIT)
UNITS = "etc/systemd/system"

GETTY = """\
[Service]
Environment=TERM=xterm-256color
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noissue --noclear --keep-baud 115200,57600,38400,9600 - $TERM
"""
NETWORK = """\
[Match]
Type=ether
Kind=!*

[Network]
DHCP=yes
IPv6AcceptRA=yes
LLMNR=no
MulticastDNS=no

[DHCPv4]
ClientIdentifier=mac
UseDomains=yes
"""
SSH_KEYS = """\
[Unit]
Description=Keys of this machine's own for ssh
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
"""
SSHD = "HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\nUseDNS no\n"
APT = """\
// A guest processor is slow: no translations, no differences between indices, the quickest packing.
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::CompressionTypes::Order { "gz"; "xz"; };
APT::Install-Recommends "false";
Dpkg::Use-Pty "false";
"""
JOURNAL = "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n"
PROFILE = """\
# The name of this machine as it is now: a shell may have begun before the machine had its name.
if [ -n "$BASH_VERSION" ]; then
    PROMPT_COMMAND='read -r HOSTNAME </proc/sys/kernel/hostname'
    PS1='\\u@${HOSTNAME}:\\w\\$ '
fi
"""
FINISH = """\
#!/bin/sh
# Run once, in the image that is being made, by the machine that makes it.
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DEBCONF_NOWARNINGS=yes
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root INITRD=No SYSTEMD_OFFLINE=1
fail() { echo "kasou-build: failed: $1"; exit 1; }
for script in /var/lib/dpkg/info/*.preinst; do
    package=${script##*/}; package=${package%.preinst}
    DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_PACKAGE=${package%:*} \\
    DPKG_MAINTSCRIPT_ARCH=riscv64 DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 \\
        "$script" install >/tmp/preinst 2>&1 || { cat /tmp/preinst; fail "preinst of $package"; }
done
# Who owns files, and where they are, has to be known before anything else is.
dpkg --configure --force-depends base-passwd || fail "dpkg --configure base-passwd"
dpkg --configure --force-depends base-files || fail "dpkg --configure base-files"
dpkg --configure -a || fail "dpkg --configure"
echo "kasou-build: tidying up"
systemctl enable @ENABLED@ || fail "systemctl enable"
audit=$(dpkg --audit)
[ -z "$audit" ] || { echo "$audit"; fail "dpkg --audit"; }
rm -f /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /usr/sbin/policy-rc.d /finish /tmp/preinst
rm -rf /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig /var/log/*.log /var/log/apt
rm -f /initrd.img* /vmlinu* /var/lib/dbus/machine-id
: >/etc/machine-id
"""


def files(mirror: str, suite: str) -> dict[str, tuple[str, int]]:
    """Path, text and mode of every file of ours; mode 0 is a symbolic link to the text.

    `mirror` and `suite` are where the system was made from, and where apt will look.
    """
    sources = (
        f"Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp\n"
    )
    made = {
        "etc/fstab": ("/dev/vda / ext4 noatime,errors=remount-ro 0 0\n", 0o644),
        "etc/hostname": ("kasou\n", 0o644),
        "etc/hosts": ("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 kasou\n", 0o644),
        "etc/locale.conf": ("LANG=C.UTF-8\n", 0o644),
        "etc/kernel-img.conf": ("do_symlinks = no\n", 0o644),
        "etc/resolv.conf": ("../run/systemd/resolve/stub-resolv.conf", 0),
        "etc/apt/sources.list.d/debian.sources": (sources, 0o644),
        "etc/apt/apt.conf.d/50kasou": (APT, 0o644),
        "etc/dpkg/dpkg.cfg.d/kasou": (PATH_EXCLUDES + "force-unsafe-io\n", 0o644),
        "etc/systemd/network/80-kasou.network": (NETWORK, 0o644),
        "etc/systemd/journald.conf.d/kasou.conf": (JOURNAL, 0o644),
        "etc/systemd/system.conf.d/kasou.conf": (
            "[Manager]\nDefaultTimeoutStopSec=15s\nStatusUnitFormat=name\n", 0o644,
        ),
        "etc/ssh/sshd_config.d/kasou.conf": (SSHD, 0o644),
        "etc/profile.d/kasou.sh": (PROFILE, 0o644),
        f"{UNITS}/serial-getty@ttyS0.service.d/kasou.conf": (GETTY, 0o644),
        f"{UNITS}/{SSH_KEYS_UNIT}": (SSH_KEYS, 0o644),
        UNIT_PATH.lstrip("/"): (systemd_unit(), 0o644),
        SCRIPT_PATH.lstrip("/"): (agent_script().decode(), 0o644),
        "usr/sbin/policy-rc.d": ("#!/bin/sh\nexit 101\n", 0o755),
        "finish": (FINISH.replace("@ENABLED@", " ".join(ENABLED)), 0o755),
    }  # fmt: skip
    for unit in MASKED:
        made[f"{UNITS}/{unit}"] = ("/dev/null", 0)
    return made
