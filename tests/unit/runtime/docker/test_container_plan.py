from __future__ import annotations

import pytest

from meshray.runtime import log_format
from meshray.runtime.docker.container_plan import Plan, free_name, gpus, shm_bytes

GIB = 1024**3


@pytest.mark.parametrize("words", [("--object-store-memory=2000000000",), ("--object-store-memory", "2000000000")])
def test_shared_memory_fits_the_requested_object_store(words: tuple[str, ...]) -> None:
    # Ray uses at most 95 % of /dev/shm.
    assert shm_bytes(words, 64 * GIB) * 0.95 > 2_000_000_000
    assert shm_bytes(words, 64 * GIB) < 3_000_000_000


def test_shared_memory_fits_rays_default_third() -> None:
    assert shm_bytes(("--num-cpus=2",), 64 * GIB) * 0.95 >= 0.3 * 64 * GIB


def test_a_size_that_is_not_a_number_is_left_to_ray() -> None:
    assert shm_bytes(("--object-store-memory=lots",), 8 * GIB) == shm_bytes((), 8 * GIB)


def test_log_settings_and_the_user_are_the_containers_environment() -> None:
    environ = {"MESHRAY_LOG": "debug", "MESHRAY_LOG_FORMAT": "", "MESHRAY_TOKEN": "secret"}
    made = Plan("image", "/bin/python", "node", "node", 1000, 1, settings=log_format.settings(environ))
    assert made.environment == {"MESHRAY_LOG": "debug", "SUDO_UID": "1000"}
    assert Plan("image", "/bin/python", "node", "node", 0, 1).environment == {}


def test_a_container_never_takes_another_ones_name() -> None:
    assert free_name("gpu-1", ()) == "meshray-gpu-1"
    assert free_name("gpu-1", {"meshray-gpu-1", "meshray-gpu-1-2"}) == "meshray-gpu-1-3"


def test_gpus_are_given_where_the_machine_has_some_and_the_engine_can() -> None:
    assert gpus(2, {"runc", "nvidia"}) == (True, "")
    assert gpus(0, {"runc", "nvidia"}) == (False, "")
    given, warning = gpus(1, {"runc"})
    assert not given
    assert "nvidia-container-toolkit" in warning
