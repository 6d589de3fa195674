"""Process 1 of a namespace for tests that start and stop clusters: its own processes, network, sshd and home folder.

`ray stop` and `ray down` end processes by their names, on the whole machine. Run as
`unshare --pid --net --mount --mount-proc --fork python namespace_init.py FOLDER COMMAND...`; FOLDER gets `home/`.
"""

import fcntl
import os
import pwd
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def main(folder: Path, command: list[str]) -> int:
    _bring_loopback_up()
    home, temporary = folder / "home", folder / "tmp"
    for path in (home / ".ssh", temporary, folder / "ray"):
        path.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "tmpfs", "/run")
    Path("/run/sshd").mkdir()
    of_ray = Path("/tmp", "ray")
    of_ray.mkdir(exist_ok=True)
    _mount("--bind", str(folder / "ray"), str(of_ray))
    _move_home(folder, home)
    _start_sshd(folder, home)
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary)}
    return _reap_until(subprocess.Popen(command, env=environment, cwd=folder).pid)


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _move_home(folder: Path, home: Path) -> None:
    """Lets this user log in with another home folder, in this namespace alone."""
    user = pwd.getpwuid(os.getuid())
    lines = [
        ":".join((user.pw_name, "x", str(user.pw_uid), str(user.pw_gid), "", str(home), "/bin/bash"))
        if line.split(":")[0] == user.pw_name
        else line
        for line in Path("/etc/passwd").read_text().splitlines()
    ]
    (folder / "passwd").write_text("\n".join(lines) + "\n")
    _mount("--bind", str(folder / "passwd"), "/etc/passwd")


def _start_sshd(folder: Path, home: Path) -> None:
    for name in (folder / "host_key", home / ".ssh" / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(name)], check=True)
    (home / ".ssh" / "authorized_keys").write_text((home / ".ssh" / "id_ed25519.pub").read_text())
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nHostKey {folder / 'host_key'}\nPidFile none\nUsePAM no\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nAuthorizedKeysFile .ssh/authorized_keys\n"
    )
    subprocess.run(["/usr/sbin/sshd", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")], check=True)


def _reap_until(child: int) -> int:
    """Waits for every process that ends, those that lost their parents with them, until `child` has."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
