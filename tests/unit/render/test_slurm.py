"""The sbatch script: the options that SLURM reads, the names that it creates, and shellcheck's report."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from meshray.errors import UsageError
from meshray.model.address import NodeName
from meshray.render import Job, slurm_job

MESHRAY = Path("/home/ann lee/ray/bin/meshray")
FULL = Job(
    nodes=4,
    time="2-12:00:00",
    partition="gpu,long",
    gpus_per_node=2,
    head=True,
    command=("python", "it's mine.py", "$HOME"),
    ray_args=("--object-store-memory=1000000000",),
    sbatch=("--account=lab", "-C intel"),
)


def options(script: str) -> list[str]:
    """Return what sbatch reads: the lines before the first command."""
    before, _, _ = script.partition("\numask")
    return [line.removeprefix("#SBATCH ") for line in before.splitlines() if line.startswith("#SBATCH ")]


def run_piece(script: str, code: str, **environ: str) -> str:
    """Return the output of a piece of bash that knows the script's settings and functions."""
    known, _, _ = script.partition('\nmkdir -m 700 "$folder"')
    environ = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": "/nowhere", "SLURM_JOB_ID": "7", **environ}
    return subprocess.run(
        ["bash", "-c", f"{known}\n{code}"], env=environ, text=True, capture_output=True, timeout=20, check=True
    ).stdout


def test_sbatch_reads_the_requested_options() -> None:
    assert options(slurm_job(FULL, MESHRAY)) == [
        "--job-name=meshray",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--time=2-12:00:00",
        "--partition=gpu,long",
        "--gpus-per-node=2",
        "--account=lab",
        "-C intel",
        "--signal=B:TERM@120",
        "--no-requeue",
    ]
    plain = options(slurm_job(Job(), MESHRAY))
    assert "--nodes=2" in plain
    assert not [option for option in plain if option.startswith(("--partition", "--gpus"))]


@pytest.mark.parametrize("job", [Job(), FULL, Job(head=True, nodes=1), Job(command=("true",))])
def test_the_script_is_sound_bash(job: Job, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(slurm_job(job, MESHRAY))
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=True).stderr == ""
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", "--exclude=SC2016", script], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


def test_arguments_arrive_as_they_were_typed() -> None:
    script = slurm_job(FULL, MESHRAY)
    words = run_piece(script, 'printf "%s\\n" "$meshray" "${command[@]}" "${ray_args[@]}" "$port" "$token_file"')
    assert words.splitlines() == [str(MESHRAY), *FULL.command, *FULL.ray_args, "20007", "/nowhere/meshray-7/token"]


@pytest.mark.parametrize(("given", "used"), [("a token", "/nowhere/a token"), ("/etc/token", "/etc/token")])
def test_the_token_file_is_found_from_every_node(given: str, used: str) -> None:
    assert run_piece(slurm_job(Job(token_file=given), MESHRAY), 'printf %s "$token_file"') == used


@pytest.mark.parametrize("host", ["gpu-01.example.org", "GPU_Node01", "x" * 90, "-_odd", "n"])
def test_names_are_valid_and_differ(host: str) -> None:
    script = slurm_job(Job(), MESHRAY)
    environ = {"SLURMD_NODENAME": host, "SLURM_JOB_ID": "1234567"}
    names = [run_piece(script, f"name_of {which}", **environ) for which in ("0", "511")]
    assert [NodeName.parse(name) for name in names] == names
    assert len(set(names)) == 2
    assert re.fullmatch(r"[a-z0-9-]*-1234567-511", names[1])


def test_a_name_begins_with_its_machine() -> None:
    environ = {"SLURMD_NODENAME": "gpu-01.example.org"}
    assert run_piece(slurm_job(Job(), MESHRAY), "name_of 3", **environ) == "gpu-01-7-3"


@pytest.mark.parametrize(
    ("job", "named"),
    [
        (Job(time="soon"), "--time 'soon'"),
        (Job(time="1:00\n#SBATCH --wrap=x"), "--time"),
        (Job(partition="a b"), "--partition 'a b'"),
        (Job(sbatch=("account=lab",)), "--sbatch 'account=lab'"),
        (Job(sbatch=("--a=b\nrm -rf",)), "--sbatch"),
        (Job(command=("echo", "a\nb")), "cannot be part of the script"),
    ],
)
def test_values_that_sbatch_would_reject_are_refused(job: Job, named: str) -> None:
    with pytest.raises(UsageError) as refused:
        slurm_job(job, MESHRAY)
    assert named in refused.value.message
    assert refused.value.code == "slurm_value"
    assert refused.value.hint
