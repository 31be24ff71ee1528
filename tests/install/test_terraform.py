"""The how-to guide's Terraform configuration renders user-data for each machine, with the real Terraform.

The cloud's resource is replaced by Terraform's built-in one, which needs no provider and no account.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.host import REPOSITORY
from tests.unit.cli.test_bring_up import TOKEN

GUIDE = REPOSITORY / "docs/how-to/many-machines.md"
TOKENS = {name: TOKEN.encode() for name in ("gpu-1", "gpu-2")}
OUTPUT = """
output "user_data" {
  value     = { for name, worker in terraform_data.worker : name => worker.output }
  sensitive = true
}
"""
#: The cloud's part of the resource → the built-in resource's.
REPLACED = {
    r'resource "aws_instance"': 'resource "terraform_data"',
    r"\n *(ami|instance_type) +=.*": "",
    r"\n *user_data = ": "\n  input = ",
}

pytestmark = pytest.mark.skipif(shutil.which("terraform") is None, reason="missing: terraform (hashicorp.com)")


def render(folder: Path, *words: str, stdin: str = "") -> None:
    """Run `meshray render cloud-init` there."""
    argv = [sys.executable, "-m", "meshray", "render", "cloud-init", *words]
    subprocess.run(argv, input=stdin, text=True, check=True, cwd=folder, timeout=60, capture_output=True)


def content(user_data: str) -> tuple[Any, list[list[str]]]:
    """Return the user-data without its script, and the words of the script's lines."""
    found = yaml.safe_load(user_data)
    script = found["write_files"][-1].pop("content")
    return found, [shlex.split(line, comments=True) for line in script.splitlines()]


def test_terraform_renders_the_user_data_that_render_prints(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```hcl\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for pattern, replacement in REPLACED.items():
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    (tmp_path / "main.tf").write_text(text + OUTPUT)
    # A text that Terraform would replace.
    options = ("--wait", "10m", '--ray-arg=--resources={"a${x}%{y}": 1}')
    render(tmp_path, "--terraform", *options, "-o", "worker.yaml.tftpl")
    environ = {
        **os.environ,
        "CHECKPOINT_DISABLE": "1",
        "TF_CLI_CONFIG_FILE": os.devnull,
        "TF_IN_AUTOMATION": "1",
        "TF_VAR_tokens": json.dumps(TOKENS),
    }

    def terraform(*words: str) -> str:
        argv = ["terraform", *words]
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    terraform("init", "-input=false", "-no-color")
    shown = terraform("apply", "-input=false", "-no-color", "-auto-approve")
    assert TOKEN.encode() not in shown
    rendered = json.loads(terraform("output", "-json"))["user_data"]["value"]
    assert set(rendered) == set(TOKENS)
    for name, user_data in rendered.items():
        render(tmp_path, "-", "--name", name, *options, "-o", f"{name}.yaml", stdin=TOKENS[name])
        assert content(user_data) == content((tmp_path / f"{name}.yaml").read_text())
