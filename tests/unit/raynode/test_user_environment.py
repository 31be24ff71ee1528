from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import UsageError
from meshray.protocol.codec import WireError, convert, decode, encode
from meshray.raynode.user_environment import (
    LONGEST_VALUE,
    MOST_VARIABLES,
    UserEnvironment,
    UserEnvironmentForm,
    parse_assignments,
    parse_file,
    select_session,
)

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
#: The text that a line of a shell can hold.
VALUES = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), max_size=60)

#: The six of the trial, and more of these kinds.
CONCERN_RAY = (
    "PATH",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_TOKEN",
    "https_proxy",
    "ALL_PROXY",
    "UV_INDEX_URL",
    "PIP_INDEX_URL",
    "RAY_worker_register_timeout_seconds",
    "CONDA_PREFIX",
    "VIRTUAL_ENV",
    "NCCL_DEBUG",
)


@pytest.mark.parametrize("name", CONCERN_RAY)
def test_variables_for_rays_programs_are_recorded(name: str) -> None:
    assert select_session({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name", ["HOME", "SSH_AUTH_SOCK", "AWS_SECRET_ACCESS_KEY", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "EDITOR", "LD_PRELOAD"]
)
def test_routes_that_do_not_overlap_or_are_meshrays_are_ignored(name: str) -> None:
    assert select_session({name: "x"}) == {}


def test_a_session_is_recorded_within_limits() -> None:
    huge = {f"HF_{number}": "x" for number in range(500)} | {"PIP_X": "y" * (LONGEST_VALUE + 1)}
    found = select_session(huge)
    assert len(found) == MOST_VARIABLES
    assert "PIP_X" not in found


@given(st.dictionaries(NAMES, VALUES, max_size=5), st.dictionaries(NAMES, VALUES, max_size=5))
def test_it_survives_the_file(session: dict[str, str], chosen: dict[str, str]) -> None:
    environment = UserEnvironment(session, chosen)
    again = UserEnvironment.of(decode(encode(environment.form()), UserEnvironmentForm))
    assert again == environment
    assert again.variables == {**session, **chosen}


def test_an_older_file_has_none_and_a_foreign_one_is_refused() -> None:
    assert UserEnvironment.of(UserEnvironmentForm()) == UserEnvironment()
    with pytest.raises(WireError):
        convert({"environment": {"X": 5}}, UserEnvironmentForm)
    with pytest.raises(WireError):
        convert({"environment": {f"X{number}": "" for number in range(MOST_VARIABLES + 1)}}, UserEnvironmentForm)


def test_it_does_not_show_values() -> None:
    assert "hunter2" not in repr(UserEnvironment({"HF_TOKEN": "hunter2"}, {"KEY": "hunter2"}))


def test_assignments() -> None:
    assert parse_assignments(["A=1", "B=x=y", "C=", "D"], {"D": "from here"}) == {
        "A": "1",
        "B": "x=y",
        "C": "",
        "D": "from here",
    }


@pytest.mark.parametrize(
    ("item", "part"),
    [
        ("1A=hunter2", "'1A' is not the name"),
        ("=hunter2", "'' is not the name"),
        ("MISSING", "your environment has no MISSING"),
        ("RAY_ADDRESS=hunter2", "meshray sets RAY_ADDRESS itself"),
        ("RAY_AUTH_MODE=disabled", "meshray sets RAY_AUTH_MODE itself"),
        ("BIG=" + "hunter2" * 2000, "the value of BIG is longer"),
    ],
)
def test_an_assignment_that_cannot_be_kept_is_refused_without_its_value(item: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_assignments([item], {})
    assert part in caught.value.message
    assert "hunter2" not in f"{caught.value.message}{caught.value.hint}"


@given(st.dictionaries(NAMES.filter(lambda name: not name.startswith(("RAY_", "MESHRAY_", "SUDO_"))), VALUES))
def test_a_file_is_read_as_a_shell_would(variables: dict[str, str]) -> None:
    allowed = {name: value for name, value in variables.items() if name not in {"PWD", "OLDPWD", "MAIL"}}
    lines = [f"{'export ' * (len(name) % 2)}{name}={shlex.quote(value)}" for name, value in allowed.items()]
    assert parse_file("\n# a comment\n".join(lines) + "\n\n", "file") == allowed


@pytest.mark.parametrize("line", ["hunter2", "A=hunter2 B=hunter2", "A='hunter2", "2=hunter2", "rm -rf hunter2"])
def test_a_line_that_is_not_an_assignment_is_named_by_its_number(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_file(f"X=1\n{line}\n", "my.env")
    assert "my.env, line 2" in caught.value.message
    assert "hunter2" not in caught.value.message
