from __future__ import annotations

import pytest

from meshray.errors import MeshrayError
from meshray.model.node import Versions
from meshray.runtime.docker.image import Content, matching_image, require_usable

HEAD = Versions("0.1.0", "2.60.0", "3.12.3")
GOOD = Content("/usr/bin/python3", "3.12.3", "2.60.0")


def code_of(found: Content, *, with_ray: bool = True, head: Versions = HEAD) -> str:
    try:
        require_usable("an/image", found, head, with_ray)
    except MeshrayError as error:
        assert "an/image" in error.message
        assert error.hint
        return error.code
    return ""


def test_the_image_has_the_heads_ray_and_python() -> None:
    assert matching_image("2.60.0", "3.12.3", "x86_64", gpus=False) == "rayproject/ray:2.60.0-py312"
    assert matching_image("2.60.0", "3.12.3", "x86_64", gpus=True) == "rayproject/ray:2.60.0-py312-gpu"
    assert matching_image("2.60.0", "3.10.1", "aarch64", gpus=False) == "rayproject/ray:2.60.0-py310-aarch64"


def test_an_image_that_can_run_a_node_is_taken() -> None:
    assert code_of(GOOD) == ""


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Content(), "image_unusable"),
        (Content("/usr/bin/python3", "3.9.2", "2.60.0"), "image_python"),
        (Content("/usr/bin/python3", "3.12.3", ""), "image_without_ray"),
        (Content("/usr/bin/python3", "3.12.3", "2.59.0"), "version_mismatch"),
        (Content("/usr/bin/python3", "3.11.7", "2.60.0"), "version_mismatch"),
    ],
)
def test_an_image_that_cannot_is_refused_by_name(found: Content, code: str) -> None:
    assert code_of(found) == code


def test_a_node_without_ray_needs_none_in_its_image() -> None:
    assert code_of(Content("/usr/bin/python3", "3.11.7"), with_ray=False) == ""


def test_without_ray_on_the_head_any_version_is_accepted() -> None:
    assert code_of(GOOD, head=Versions()) == ""
