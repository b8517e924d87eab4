"""Hosts on one machine: network namespaces on a bridge, with an sshd in each."""

import os
import subprocess
import time
from pathlib import Path

SSHD = "/usr/sbin/sshd"


def run(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def why_not() -> str | None:
    """The reason why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path(SSHD).exists():
        return f"there is no {SSHD}: install openssh-server"
    name = f"zp{os.getpid()}"
    try:
        run("ip", "netns", "add", name)
        run("ip", "netns", "del", name)
        run("ip", "link", "add", name, "type", "bridge")
        run("ip", "link", "del", name)
    except (RuntimeError, FileNotFoundError) as error:
        return f"network namespaces are not permitted: {error}"
    return None


class Hosts:
    """`addresses[i]` is reached from every other host and from here; `ssh_config` has the names host0, host1, ..."""

    def __init__(self, count: int, folder: Path):
        self.folder, self.tag = folder, f"zp{os.getpid() % 10000}"
        self.names = [f"{self.tag}h{i}" for i in range(count)]
        third = os.getpid() % 250 + 1
        self.addresses = [f"10.213.{third}.{i + 2}" for i in range(count)]
        self.ssh_config = folder / "ssh_config"
        self.daemons: list[subprocess.Popen] = []
        self._make_keys()
        self.bridge = f"{self.tag}br"
        try:
            run("ip", "link", "add", self.bridge, "type", "bridge")
            run("ip", "addr", "add", f"10.213.{third}.1/24", "dev", self.bridge)
            run("ip", "link", "set", self.bridge, "up")
            for i in range(count):
                self._make_host(i)
            self._await_daemons()
        except BaseException:
            self.close()
            raise

    def _make_keys(self) -> None:
        for key in ("host_key", "user_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        (self.folder / "authorized").write_text((self.folder / "user_key.pub").read_text())
        self.ssh_config.write_text(
            "".join(f"Host host{i}\n  HostName {address}\n" for i, address in enumerate(self.addresses))
            + f"Host *\n  IdentityFile {self.folder}/user_key\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n  LogLevel ERROR\n"
        )

    def _make_host(self, i: int) -> None:
        name, outside = self.names[i], f"{self.names[i]}o"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", outside, "master", self.bridge, "up")
        for words in (
            ["addr", "add", f"{self.addresses[i]}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            run("ip", "-n", name, *words)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.folder / f"sshd_config{i}"
        config.write_text(
            f"ListenAddress {self.addresses[i]}\nHostKey {self.folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPermitRootLogin yes\nPasswordAuthentication no\n"
        )
        log = (self.folder / f"sshd{i}.log").open("w")
        self.daemons.append(
            subprocess.Popen(["ip", "netns", "exec", name, SSHD, "-D", "-e", "-f", str(config)], stderr=log)
        )

    def _await_daemons(self) -> None:
        end = time.monotonic() + 20
        for i in range(len(self.names)):
            while (
                subprocess.run(["ssh", "-F", str(self.ssh_config), f"host{i}", "true"], capture_output=True).returncode
                != 0
            ):
                if time.monotonic() > end:
                    raise RuntimeError(f"no sshd on host{i}: {(self.folder / f'sshd{i}.log').read_text()}")
                time.sleep(0.05)

    def processes(self, i: int) -> list[int]:
        """All processes of a host except its sshd."""
        pids = map(int, run("ip", "netns", "pids", self.names[i]).split())
        return [pid for pid in pids if pid != self.daemons[i].pid and name_of(pid)]

    def sessions(self, i: int) -> list[int]:
        """The sshd processes of a host that serve a connection."""
        return [pid for pid in self.processes(i) if name_of(pid).startswith("sshd")]

    def sent_bytes(self, i: int) -> int:
        """The bytes that a host has sent to others since it was made."""
        return int(Path(f"/sys/class/net/{self.names[i]}o/statistics/rx_bytes").read_text())

    def unplug(self, i: int) -> None:
        run("ip", "link", "set", f"{self.names[i]}o", "down")

    def plug(self, i: int) -> None:
        run("ip", "link", "set", f"{self.names[i]}o", "up")

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        for name in self.names:
            for pid in run("ip", "netns", "pids", name, check=False).split():
                subprocess.run(["kill", "-9", pid], stderr=subprocess.DEVNULL)
            # The kernel removes a namespace and its links some time later, but the next hosts have the same names.
            run("ip", "link", "del", f"{name}o", check=False)
            run("ip", "netns", "del", name, check=False)
        run("ip", "link", "del", self.bridge, check=False)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
