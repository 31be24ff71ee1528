"""A separate SLURM in one host: munged, slurmctld, and a slurmd for each compute node, as packaged by Debian.

The compute nodes are names of one machine, on separate ports. Nothing here needs cgroups: SLURM tracks processes by
their parents, as it can do everywhere.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from tests.lab.host import USER, Host

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
#: The folder of the lab's SLURM, which ends with the host.
_CONFIG = """\
ClusterName=lab
SlurmctldHost={name}
SlurmctldPort=6817
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=/var/lib/slurm
SlurmdSpoolDir=/var/lib/slurmd-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
ReturnToService=2
KillWait=20
MailProg=/bin/true
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    """Return whether Debian's slurmctld, slurmd, slurm-client and munge are installed."""
    return all(shutil.which(program) for program in PROGRAMS)


@dataclass
class Slurm:
    """A SLURM that runs in ``host``, and its compute nodes."""

    host: Host
    nodes: tuple[str, ...]

    @classmethod
    def start(cls, host: Host, nodes: tuple[str, ...]) -> Slurm:
        """Start everything; return when every node is idle."""
        lines = [
            f"NodeName={node} NodeHostname={host.name} NodeAddr=127.0.0.1 Port={7001 + number} CPUs=1 State=UNKNOWN"
            for number, node in enumerate(nodes)
        ]
        host.shell(
            "mkdir -p /etc/slurm /var/lib/slurm /run/munge /var/lib/munge /var/log/munge"
            " && dd if=/dev/urandom of=/etc/munge/munge.key bs=1k count=1 2>/dev/null"
            " && chown munge:munge /etc/munge /etc/munge/munge.key /run/munge /var/lib/munge /var/log/munge"
            " && chmod 0400 /etc/munge/munge.key && chmod 0755 /run/munge && cat > /etc/slurm/slurm.conf",
            stdin=_CONFIG.format(name=host.name, nodes="\n".join(lines)),
        )
        host.popen(["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground"])
        host.wait_until(lambda: host.path("/run/munge/munge.socket.2").exists(), 10, "munge's socket")
        host.popen(["slurmctld", "-D", "-c"])
        for node in nodes:
            host.popen(["slurmd", "-D", "-N", node], name=f"slurmd-{node}")
        slurm = cls(host, nodes)
        host.wait_until(lambda: slurm.idle() == len(nodes), 40, "idle compute nodes")
        return slurm

    def idle(self) -> int:
        """Return the number of idle compute nodes."""
        seen = self.host.run(["sinfo", "--noheader", "--Node", "--format=%t"], check=False)
        return seen.stdout.split().count("idle")

    def submit(self, script: str, cwd: str) -> int:
        """Run `sbatch` as the ordinary user; return the job's number."""
        answer = self.host.run(["sbatch", "--parsable", script], user=USER, cwd=cwd)
        return int(answer.stdout)

    def jobs(self) -> list[int]:
        """Return the numbers of waiting and running jobs."""
        return [int(word) for word in self.host.run(["squeue", "--noheader", "--format=%A"]).stdout.split()]

    def scancel(self, *words: str) -> None:
        """Cancel the job as its user."""
        self.host.run(["scancel", *words], user=USER)
