r"""The sbatch script with which the nodes of a SLURM job become nodes of a mesh.

>>> print(slurm_job(Job(nodes=4, partition="gpu"), Path("/home/ann/ray/bin/meshray")).splitlines()[6])
#SBATCH --nodes=4
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from meshray.errors import UsageError
from meshray.render.templates import render

TEMPLATE = "slurm/job.sh.j2"
#: The forms that `sbatch --time` accepts: minutes, [hours:]minutes:seconds, days-hours[:minutes[:seconds]] (sbatch(1)).
_TIME = re.compile(r"\d+|\d+:\d{1,2}(:\d{1,2})?|\d+-\d{1,2}(:\d{1,2}){0,2}|infinite|unlimited", re.IGNORECASE)
_PARTITIONS = re.compile(r"[\w.-]+(,[\w.-]+)*")
_OPTION = re.compile(r"--?[A-Za-z]\S*( \S+)*")


@dataclass(frozen=True)
class Job:
    """A SLURM job whose nodes join the mesh.

    Attributes:
        nodes: the number of compute nodes; each becomes a node of the mesh.
        time: the time limit in a form of `sbatch --time`.
        gpus_per_node: 0 requests none.
        token_file: a path; relative to the folder in which sbatch runs.
        head: whether the job contains the Ray head and needs no token.
        command: runs on the first node when all nodes are up; may be empty.
        ray_args: more options of `ray start`.
        sbatch: more options of sbatch, one per item.
    """

    nodes: int = 2
    time: str = "1:00:00"
    partition: str = ""
    gpus_per_node: int = 0
    token_file: str = "meshray.token"  # noqa: S105 - a file's name
    head: bool = False
    command: tuple[str, ...] = ()
    ray_args: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()


def slurm_job(job: Job, meshray: Path) -> str:
    """Return the text of the script.

    Args:
        meshray: the program's path on the compute nodes.

    Raises:
        UsageError: ``slurm_value``, if SLURM would reject or misread a value.
        MeshrayError: templates_missing.
    """
    _require(_TIME, job.time, "--time", "--time 8:00:00, or 2-12:00:00 with days")
    if job.partition:
        _require(_PARTITIONS, job.partition, "--partition", "--partition gpu")
    for option in job.sbatch:
        _require(_OPTION, option, "--sbatch", "--sbatch=--account=lab")
    for word in (*job.command, *job.ray_args, job.token_file, str(meshray)):
        if not word.isprintable():
            raise UsageError("slurm_value", f"{word[:80]!r} cannot be part of the script", hint="put it into a file")
    values = {**vars(job), "meshray": str(meshray)}
    return render(TEMPLATE, values, {"quoted": shlex.quote})


def _require(form: re.Pattern[str], text: str, option: str, example: str) -> None:
    if not form.fullmatch(text) or not text.isprintable():
        raise UsageError("slurm_value", f"{option} {text[:80]!r} is not valid for sbatch", hint=example)
