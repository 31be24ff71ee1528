"""The licences are complete and included in everything that is built."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = (REPOSITORY / "pyproject.toml").read_text()
#: Of https://www.apache.org/licenses/LICENSE-2.0.txt.
APACHE_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_licence_is_the_whole_standard_text() -> None:
    assert hashlib.sha256((REPOSITORY / "LICENSE").read_bytes()).hexdigest() == APACHE_SHA256
    assert 'license = "Apache-2.0"\nlicense-files = ["LICENSE*"]\n' in PROJECT


def test_the_engine_has_the_licence_of_each_module_that_is_linked_into_it() -> None:
    modules = re.findall(r"^\t(\S+) v\S+", (REPOSITORY / "meshray/wireguard/engine/go.mod").read_text(), re.MULTILINE)
    # No part of Windows' driver is linked into a program for Linux.
    linked = {module for module in modules if module != "golang.zx2c4.com/wintun"}
    assert len(linked) >= 4
    named = re.findall(r"^=+\n(.+)\n", (REPOSITORY / "LICENSE-ENGINE.txt").read_text(), re.MULTILINE)
    assert {name for line in named for name in line.split(", ")} == {"Go", *linked}


def test_an_image_is_built_from_all_that_the_wheel_is_made_of() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (REPOSITORY / "containers/Dockerfile").read_text(), re.MULTILINE)
    words = {word.rstrip("/") for line in copied for word in line.split()}
    assert {"pyproject.toml", "README.md", "LICENSE*", "hatch_build.py", "templates", "meshray"} <= words
    let_in = {line.removeprefix("!") for line in (REPOSITORY / ".dockerignore").read_text().splitlines()}
    assert {word for word in words if "/" not in word} <= let_in
