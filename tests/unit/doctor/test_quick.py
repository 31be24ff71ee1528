"""The warnings before Ray starts, the problems in status and the doctor's report agree."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.doctor.context import Context
from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, HostFacts, NodeFacts
from meshray.doctor.machine import probe
from meshray.doctor.machine.facts import Folder, MachineFacts, ProcessLimits
from meshray.doctor.quick import before_ray, judge, of_machine
from meshray.doctor.report import FAIL, OK, WARN
from meshray.home import Home
from meshray.linux import procfs
from meshray.linux.process import ManagedProcess
from meshray.model.problem import Problem
from meshray.protocol.status import Status
from tests.unit.raynode.test_command import WORKER

MB = 1024**2
GB = 1024 * MB
STATUS = Status("lab", 7, "gpu-1")
#: Of 10 GB Ray uses 3 for its object store.
MEMORY = 10 * GB


class Machine:
    """A machine whose /dev/shm and folders are as a test sets them."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.shm = (8 * GB, 8 * GB)
        self.free = 50 * GB
        self.limits: ProcessLimits | None = None
        self.weak_part = ""

    async def judged(self, *ray_args: str, trusted: bool = False) -> tuple[list[tuple[str, str, str]], ...]:
        """Return (code, level, words) of the preflight, of status and of the doctor."""
        first = await before_ray(self.home, {}, ray_args)
        failed, warned = await of_machine((), "gpu-1", self.home, {}, ray_args, trusted=trusted)
        plan = replace(WORKER, extra_args=ray_args)
        context = Context(self.home, {}, status=STATUS, ray_plan=plan, trusts_user_environment=trusted)
        facts = Facts(nodes={"gpu-1": NodeFacts(host=HostFacts(machine=await probe.measure(context)))})
        output = [check for check in examine(facts) if check.status in (FAIL, WARN) and check.code in CODES]
        return (
            [(check.code, check.status, check.evidence) for check in first],
            [(problem.code, FAIL, problem.text) for problem in failed]
            + [(self._code(text, output), WARN, text) for text in warned],
            [(check.code, check.status, check.evidence) for check in output],
        )

    @staticmethod
    def _code(text: str, output: list) -> str:  # type: ignore[type-arg]
        return next((check.code for check in output if check.evidence == text), "")


CODES = {"disk_space", "install_trusted", "open_files", "shared_memory", "hostname_resolves"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(Home(tmp_path, tmp_path))

    async def own_name() -> tuple[str, float | None]:
        return "", 0.01

    def folder(use: str, path: Path, mounts: object, *, for_ray: bool = False) -> Folder:
        return Folder(use, str(path), total=100 * GB, free=machine.free, kind="ext4", for_ray=for_ray)

    def limits(name: str, pid: int) -> list[ProcessLimits]:
        return [machine.limits] if machine.limits is not None else []

    monkeypatch.setattr(probe, "_resolve_own_name", own_name)
    monkeypatch.setattr(probe, "_space", lambda path: machine.shm)
    monkeypatch.setattr(probe, "_meminfo", lambda name: MEMORY)
    monkeypatch.setattr(probe, "_folder", folder)
    monkeypatch.setattr(probe, "_limits", limits)
    monkeypatch.setattr(probe, "is_root", lambda: True)
    monkeypatch.setattr(probe, "untrusted_part", lambda **_: machine.weak_part)
    return machine


@pytest.mark.parametrize("ray_args", [(), ("--object-store-memory=80000000",)], ids=["default", "80 MB asked for"])
@pytest.mark.parametrize("size", [64, 100, 150, 200, 255, 256, 300])
async def test_all_three_agree_on_shared_memory(machine: Machine, size: int, ray_args: tuple[str, ...]) -> None:
    machine.shm = (size * MB, size * MB)
    first, status, doctor = await machine.judged(*ray_args)
    assert first == status == doctor
    level = FAIL if size < 75 else OK if ray_args else WARN
    assert [(code, seen) for code, seen, _ in doctor] == ([("shared_memory", level)] if level != OK else [])
    assert all(f"/dev/shm has {size} MB" in words for _, _, words in doctor)


@pytest.mark.parametrize(("free", "level"), [(10 * MB, FAIL), (900 * MB, FAIL), (4 * GB, FAIL), (6 * GB, OK)])
async def test_all_three_agree_on_a_full_disk(machine: Machine, free: int, level: str) -> None:
    machine.free = free
    first, status, doctor = await machine.judged()
    assert first == status == doctor
    assert [(code, seen) for code, seen, _ in doctor] == ([("disk_space", level)] if level != OK else [])


@pytest.mark.parametrize(("soft", "hard", "level"), [(200, 8192, FAIL), (1024, 4096, WARN), (1024, 8192, OK)])
async def test_status_and_doctor_agree_on_open_files(machine: Machine, soft: int, hard: int, level: str) -> None:
    machine.limits = ProcessLimits("the agent", 7, soft, hard, 60)
    _, status, doctor = await machine.judged()
    assert status == doctor
    assert [(code, seen) for code, seen, _ in doctor] == ([("open_files", level)] if level != OK else [])


@pytest.mark.parametrize(("trusted", "level"), [(False, FAIL), (True, WARN)])
async def test_status_and_doctor_agree_on_a_weak_installation(machine: Machine, trusted: bool, level: str) -> None:
    machine.weak_part = "/home/ann/ray"
    first, status, doctor = await machine.judged(trusted=trusted)
    assert first == []
    assert status == doctor
    assert [(code, seen) for code, seen, _ in doctor] == [("install_trusted", level)]


def test_other_programs_take_shared_memory_from_a_ray_that_is_to_start() -> None:
    full = MachineFacts(with_ray=True, shm_total=8 * GB, shm_free=10 * MB, object_store=GB)
    assert [(check.code, check.status) for check in judge(full)] == [("shared_memory", FAIL)]
    # The used part belongs to Ray's own object store.
    running = replace(full, processes=(ProcessLimits("Ray", 9, 1024, 8192, 60),))
    assert judge(running) == []


async def test_a_problem_that_a_part_reports_is_not_reported_twice(machine: Machine) -> None:
    machine.free = 1024
    refused = Problem("disk_space", "the map cannot be kept on disk", "gpu-1", "df -h")
    assert await of_machine((refused,), "gpu-1", machine.home, {}, ()) == ((), ())


@pytest.mark.parametrize(
    ("environ", "ray_args", "running", "folder"),
    [
        ({}, (), "", "/tmp/ray"),
        ({"RAY_TMPDIR": "/scratch"}, (), "", "/scratch/ray"),
        ({}, ("--temp-dir=/data/ray",), "", "/data/ray"),
        # meshray chose another folder, because /tmp/ray belongs to another user.
        ({}, (), "ray\0start\0--temp-dir=/tmp/ray-1001\0", "/tmp/ray-1001"),
    ],
)
async def test_the_disk_of_rays_own_folder_is_examined(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    ray_args: tuple[str, ...],
    running: str,
    folder: str,
) -> None:
    if running:
        machine.home.pid_file("ray").parent.mkdir(parents=True, exist_ok=True)
        ManagedProcess(machine.home.pid_file("ray")).record_this_process()
        monkeypatch.setattr(procfs, "read", lambda pid, name: running.encode())
    facts = probe.static_facts(machine.home, environ, ray_args)
    assert [one.path for one in facts.folders if one.for_ray] == [folder]


async def test_a_slow_examination_of_the_installation_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def untrusted_part() -> str:
        may_end.wait(10)
        return "/opt/venv"

    monkeypatch.setattr(probe, "untrusted_part", untrusted_part)
    monkeypatch.setattr(probe, "_INSTALLATION_S", 0.05)
    try:
        found = await probe.measure(Context(Home(tmp_path, tmp_path / "run"), {}, hosts_coordinator=True))
    finally:
        may_end.set()
    assert found.weak_part == ""
    assert "it is the mesh's clock" in found.clock_unknown
    assert found.shm_total
