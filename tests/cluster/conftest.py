"""A real SLURM of one node on this machine's loopback address, for as long as the tests of this folder need it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # the toys of test_snakefile

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "sinfo")
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no SLURM here; empty if there can."""
    without = [name for name in PROGRAMS if shutil.which(name) is None]
    if without:
        return f"{', '.join(without)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons start jobs as root only"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Variables that make SLURM's commands talk to this one. Its daemons end with the tests."""
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        controller=free_port(),
        daemon=free_port(),
        cpus=os.cpu_count(),
        memory=int(0.9 * psutil.virtual_memory().total / 2**20),
    )
    (folder / "slurm.conf").write_text(text)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
              f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed"]  # fmt: skip
    commands = (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"])
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("w")
            daemons.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )
            if command is munged:
                wait_for((folder / "munge.socket").exists, folder)
        wait_for(lambda: state(environment) == "idle", folder)
        # Snakemake takes SLURM_CONF away from a job, whose srun would then read the machine's own configuration
        (folder / "bin").mkdir()
        srun = folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
        yield {"SLURM_CONF": environment["SLURM_CONF"], "PATH": path}
        subprocess.run(["scancel", "--user=root"], env=environment, timeout=30)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def unavailable(reason: str) -> None:
    """Skips, since a container may forbid what the daemons need; fails where SAFEBOOK_REQUIRE_SLURM is set."""
    (pytest.fail if os.environ.get("SAFEBOOK_REQUIRE_SLURM") else pytest.skip)(reason)


def state(environment: dict) -> str:
    command = ["sinfo", "--noheader", "--format=%t"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.strip()


def wait_for(ready, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            ends = [f"{path.name}: {path.read_text()[-1500:]}" for path in folder.glob("*.[ol][uo][tg]")]
            unavailable("SLURM did not come up. " + "\n".join(ends))
        time.sleep(0.2)
