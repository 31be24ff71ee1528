from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.environment.requirements import parse_requirements


def test_requirements_of_an_index_are_kept_sorted_and_unique() -> None:
    requirements = parse_requirements(
        "torch==2.9.1\n# why\nnumpy==2.1.0  # fast\n\nnumpy==2.1.0\nfoo[bar]>=1 ; python_version < '3.12'\n"
    )
    assert requirements.lines == ('foo[bar]>=1; python_version < "3.12"', "numpy==2.1.0", "torch==2.9.1")
    assert requirements.refused == ()


@pytest.mark.parametrize("line", ["ray==2.60.0", "Ray[default]", "meshray @ file:///src/meshray", "meshray==0.1"])
def test_ray_and_meshray_are_left_out(line: str) -> None:
    assert (parse_requirements(line).lines, parse_requirements(line).refused) == ((), ())


@pytest.mark.parametrize(
    "line",
    [
        *(
            "-e /home/ada/lib",
            "-e git+https://example.org/lib.git#egg=lib",
            "--index-url https://index",
            "-r other.txt",
        ),
        *("./lib", "/home/ada/lib.whl", "lib @ file:///home/ada/lib", "lib @ git+https://example.org/lib"),
    ],
)
def test_requirements_of_one_machine_only_are_named(line: str) -> None:
    assert parse_requirements(f"numpy\n{line}\n").refused == (line,)


def test_a_password_in_an_address_is_not_shown() -> None:
    assert parse_requirements("lib @ https://ada:hunter2@example.org/lib.whl").refused == (
        "lib @ https://example.org/lib.whl",
    )
    assert parse_requirements("--index-url https://ada:hunter2@example.org").refused == (
        "--index-url https://example.org",
    )


def test_hashes_stay_with_their_requirement() -> None:
    assert parse_requirements("numpy==2.1.0 \\\n    --hash=sha256:ab12 \\\n    --hash=sha256:cd34\n").lines == (
        "numpy==2.1.0 --hash=sha256:ab12 --hash=sha256:cd34",
    )


@given(st.text(max_size=200))
def test_any_text_is_sifted_and_what_is_kept_stays(text: str) -> None:
    once = parse_requirements(text)
    assert parse_requirements(once.text).lines == once.lines
    assert parse_requirements(once.text).refused == ()
