"""The user-data for cloud-init: YAML that cloud-init reads, and a script that a shell runs as intended."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshray.errors import UsageError
from meshray.render.cloud_init import FirstBoot, cloud_init

WORKER = FirstBoot(head=False, token="meshray1_AbC", name="gpu-1", ray_args=("--num-gpus=1", "a b'c"))
HEAD = FirstBoot(head=True, name="head", options=("--advertise", "head.example.org"))
TEMPLATE = FirstBoot(head=False, terraform=True, ray_args=("${x}%{y}",))
#: A fake meshray: records its arguments, and exits with the next of the codes in a file.
MESHRAY = """#!/bin/sh
printf '%s\\n' "$*" >> "$FOLDER/calls"
code=$(sed -n 1p "$FOLDER/codes")
sed -i 1d "$FOLDER/codes"
exit "$code"
"""


def files_of(text: str) -> dict[str, dict[str, Any]]:
    assert text.startswith("#cloud-config\n")
    content = yaml.safe_load(text)
    assert set(content) == {"write_files", "runcmd"}
    assert content["runcmd"] == [["/bin/sh", "/usr/local/sbin/meshray-first-boot"]]
    return {file["path"]: file for file in content["write_files"]}


def script_of(text: str) -> str:
    script = files_of(text)["/usr/local/sbin/meshray-first-boot"]["content"]
    assert isinstance(script, str)
    return script


def test_a_worker_has_its_token_in_a_file_for_root_alone() -> None:
    token = files_of(cloud_init(WORKER))["/etc/meshray/token"]
    assert (token["content"], token["permissions"], token["owner"]) == ("meshray1_AbC", "0600", "root:root")
    assert set(files_of(cloud_init(HEAD))) == {"/usr/local/sbin/meshray-first-boot"}
    assert "meshray1_AbC" not in script_of(cloud_init(WORKER))


@pytest.mark.parametrize("boot", [WORKER, HEAD, TEMPLATE, FirstBoot(head=True, program="/opt/my ray/bin/meshray")])
def test_the_script_is_sound(boot: FirstBoot, tmp_path: Path) -> None:
    script = tmp_path / "first-boot"
    script.write_text(script_of(cloud_init(boot)))
    assert subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=True).stderr == ""
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", "--exclude=SC2016", script], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("codes", "patience_s", "calls", "status", "keeps"),
    [("0", 60, 1, 0, False), ("5\n5\n0", 60, 3, 0, False), ("4", 60, 1, 4, True), ("5\n5", 0, 1, 5, True)],
    ids=["at once", "the head is late", "refused", "the head never comes"],
)
def test_a_worker_tries_again_only_while_the_head_is_away(
    codes: str, patience_s: int, calls: int, status: int, keeps: bool, tmp_path: Path
) -> None:
    program, token = tmp_path / "meshray", tmp_path / "token"
    program.write_text(MESHRAY)
    program.chmod(0o755)
    (tmp_path / "codes").write_text(codes + "\n")
    token.touch()
    boot = FirstBoot(head=False, token="t", name="gpu-1", program=str(program), patience_s=patience_s)
    script = script_of(cloud_init(boot)).replace("/etc/meshray/token", str(token)).replace("sleep 10", "sleep 0")
    environ = {"PATH": os.environ["PATH"], "FOLDER": str(tmp_path)}
    done = subprocess.run(["sh", "-c", script], env=environ, check=False, timeout=20)
    assert done.returncode == status
    assert (tmp_path / "calls").read_text().splitlines() == [f"join @{token} --name gpu-1"] * calls
    assert token.exists() == keeps


def test_words_arrive_as_they_were_typed(tmp_path: Path) -> None:
    program = tmp_path / "it's meshray"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$FOLDER/words"\n')
    program.chmod(0o755)
    script = script_of(cloud_init(FirstBoot(head=True, name="h", program=str(program), ray_args=("a b'c", "$HOME"))))
    environ = {"PATH": os.environ["PATH"], "FOLDER": str(tmp_path)}
    subprocess.run(["sh", "-c", script], env=environ, check=True, timeout=20)
    assert (tmp_path / "words").read_text().splitlines() == ["init", "--name", "h", "--", "a b'c", "$HOME"]


def test_terraform_replaces_its_variables_and_nothing_else() -> None:
    text = cloud_init(TEMPLATE)
    assert "$${x}%%{y}" in text
    replaced = (
        text.replace("$${", "\0").replace("%%{", "\1").replace("${token}", "meshray1_T").replace("${name}", "g-1")
    )
    assert "${" not in replaced
    assert "%{" not in replaced
    final = replaced.replace("\0", "${").replace("\1", "%{")
    assert files_of(final)["/etc/meshray/token"]["content"] == "meshray1_T"
    assert "join @/etc/meshray/token --name 'g-1' -- '${x}%{y}' ||" in script_of(final)


@pytest.mark.parametrize("boot", [FirstBoot(head=True, program="/a\nb"), FirstBoot(head=True, ray_args=("a\x1bb",))])
def test_control_characters_are_refused(boot: FirstBoot) -> None:
    with pytest.raises(UsageError, match="cannot be part of user-data"):
        cloud_init(boot)
