"""Memory limits of control groups, read from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

from meshray.linux.memory_limit import MemoryLimit, decisive_limit, kills, kills_file

MB = 1024**2
MOUNT_V2 = "35 24 0:30 {} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
MOUNT_V1 = "35 31 0:32 {} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


def machine(root: Path, cgroup: str, mount: str) -> None:
    for name, text in {"7/cgroup": cgroup, "self/mountinfo": mount, "meminfo": "MemTotal:  8388608 kB"}.items():
        file = root / "proc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def group(root: Path, folder: str, **files: str) -> None:
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / folder / name.replace("memory_", "memory.", 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def v2(root: Path, folder: str, used: int, limit: str, killed: int = 0) -> None:
    stat = f"anon 1\ninactive_file {10 * MB}\nactive_file 3"
    events = f"low 0\nmax 9\noom 1\noom_kill {killed}\noom_group_kill 0"
    group(root, folder, memory_current=str(used), memory_max=limit, memory_stat=stat, memory_events=events)


def test_the_group_that_is_full_first_is_decisive(tmp_path: Path) -> None:
    machine(tmp_path, "0::/user.slice/ray.service", MOUNT_V2.format("/"))
    v2(tmp_path, "user.slice", 910 * MB, str(1000 * MB), killed=9)
    v2(tmp_path, "user.slice/ray.service", 300 * MB, str(2000 * MB), killed=2)
    assert decisive_limit(7, tmp_path) == MemoryLimit("/user.slice", 900 * MB, 1000 * MB)
    # Kills of the group's neighbours are not counted.
    file = kills_file(7, tmp_path)
    assert file is not None
    assert kills(file) == 2


def test_no_limit_and_one_above_the_machines_memory_are_none(tmp_path: Path) -> None:
    machine(tmp_path, "0::/ray.service", MOUNT_V2.format("/"))
    v2(tmp_path, "ray.service", 300 * MB, "max")
    assert decisive_limit(7, tmp_path) is None
    v2(tmp_path, "ray.service", 300 * MB, str(9000 * MB))
    assert decisive_limit(7, tmp_path) is None
    assert decisive_limit(8, tmp_path) is None
    assert kills_file(8, tmp_path) is None


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    machine(tmp_path, "4:memory:/docker/1f0c\n0::/", MOUNT_V1.format("/docker/1f0c"))
    stat = f"inactive_file 1\ntotal_inactive_file {5 * MB}"
    group(
        tmp_path,
        "memory",
        memory_limit_in_bytes=str(100 * MB),
        memory_usage_in_bytes=str(99 * MB),
        memory_stat=stat,
        memory_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3",
    )
    found = decisive_limit(7, tmp_path)
    assert found == MemoryLimit("/", 94 * MB, 100 * MB)
    assert found.share == 0.94
    file = kills_file(7, tmp_path)
    assert file is not None
    assert kills(file) == 3


def test_version_1_has_a_number_for_no_limit(tmp_path: Path) -> None:
    machine(tmp_path, "4:memory:/job", MOUNT_V1.format("/"))
    for folder in ("memory", "memory/job"):
        group(tmp_path, folder, memory_limit_in_bytes="9223372036854771712", memory_usage_in_bytes="28889088")
    assert decisive_limit(7, tmp_path) is None
