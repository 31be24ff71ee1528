"""A driver finds the cluster, and Ray's own programs before others."""

from __future__ import annotations

from pathlib import Path

from meshray.cli.driver import Driver

DRIVER = Driver({"RAY_ADDRESS": "10.99.0.1:6379"}, "/home/ada/ray/bin", {"VIRTUAL_ENV": "/home/ada/ray"}, 1000)


def test_rays_environment_is_active() -> None:
    environ = DRIVER.apply({"PATH": "/usr/bin", "CONDA_PREFIX": "/opt/conda"})
    assert environ == {
        "RAY_ADDRESS": "10.99.0.1:6379",
        "PATH": "/home/ada/ray/bin:/usr/bin",
        "VIRTUAL_ENV": "/home/ada/ray",
    }


def test_an_active_environment_with_a_ray_of_its_own_stays_first(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ray").touch()
    environ = DRIVER.apply({"PATH": f"{tmp_path}/bin:/usr/bin", "VIRTUAL_ENV": str(tmp_path)})
    assert environ["PATH"] == f"{tmp_path}/bin:/usr/bin:/home/ada/ray/bin"
    assert environ["VIRTUAL_ENV"] == str(tmp_path)


def test_a_node_that_knows_no_ray_changes_no_path() -> None:
    assert Driver({"A": "1"}).apply({"PATH": "/usr/bin"}) == {"A": "1", "PATH": "/usr/bin"}
