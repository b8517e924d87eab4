"""A separate Slurm: two nodes on this machine, with daemons and files that are removed when it is closed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from processes import free_port

PROGRAMS = ("slurmctld", "slurmd", "srun", "salloc", "scancel", "sinfo", "munged")
CONFIGURATION = """
ClusterName=zeropage
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""


def why_not() -> str | None:
    """The reason why there can be no Slurm here; None if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmd slurmctld slurm-client munge"
    return None if os.geteuid() == 0 else "slurmd needs root"


class Slurm:
    """`run` is srun, or another program of Slurm, with this Slurm's configuration."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self.daemons: list[subprocess.Popen] = []
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        ports = {name: free_port() for name in ("controller_port", "port_1", "port_2")}
        host = socket.gethostname().split(".")[0]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, **ports))
        try:
            places = {
                "socket": "munge.socket",
                "key-file": "munge.key",
                "pid-file": "munge.pid",
                "log-file": "munge.log",
                "seed-file": "munge.seed",
            }
            self._start(
                "munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in places.items())
            )
            self.await_((folder / "munge.socket").exists, "munged")
            self._start("slurmctld", "-D", "-c")
            for name in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", name)
            self.await_(self._is_idle, "two idle nodes")
        except BaseException:
            self.close()
            raise

    def run(
        self, *words: str, timeout_s: float = 90, program: str = "srun", **variables: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [program, *words],
            env={**self.environment, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def close(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, *words: str) -> None:
        log = open(self.folder / f"daemon{len(self.daemons)}.log", "w")  # noqa: SIM115
        self.daemons.append(
            subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        )

    def _is_idle(self) -> bool:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%t"], env=self.environment, capture_output=True, text=True, timeout=30
        )
        return done.stdout.split() == ["idle", "idle"]

    def await_(self, condition: Callable[[], bool], what: str) -> None:
        """Raises RuntimeError with the daemons' logs when it takes more than 40 seconds."""
        end = time.monotonic() + 40
        while not condition():
            if time.monotonic() > end:
                logs = "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))
                raise RuntimeError(f"Slurm did not reach this state: {what}:\n{logs}")
            time.sleep(0.1)
