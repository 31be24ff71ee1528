"""Vagrant accepts the Vagrantfile, and its machines run their scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
HEREDOC = re.compile(r"^(\w+) = <<~SHELL\n(.*?)^SHELL$", re.MULTILINE | re.DOTALL)


def text_of_vagrantfile() -> str:
    """Return the Vagrantfile, with the addresses in its scripts filled in."""
    text = (REPOSITORY / "Vagrantfile").read_text()
    constants = dict(re.findall(r'^(\w+) = "([\d.]+)"$', text, re.MULTILINE))
    return re.sub(r"#\{(\w+)\}", lambda found: constants[found[1]], text)


def scripts() -> dict[str, str]:
    """Return name → text of the provisioning scripts, without their indentation, as Ruby reads them."""
    return {name: dedent(body) for name, body in HEREDOC.findall(text_of_vagrantfile())}


def route() -> str:
    """Return the script of the machine behind the NAT."""
    (found,) = re.findall(r'"route", type: "shell", run: "always", inline: "(.*)"', text_of_vagrantfile())
    assert isinstance(found, str)
    return found


def excluded() -> list[str]:
    """Return the folders of the repository that are not copied to the machines."""
    (found,) = re.findall(r"rsync__exclude: \[(.*)\]", text_of_vagrantfile())
    return [name.rstrip("/") for name in re.findall(r'"(.*?)"', found)]


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="missing: vagrant (apt-get install vagrant)")
def test_vagrant_accepts_it(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "dotfile"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_CWD": str(REPOSITORY),
    }
    # No provider (VirtualBox, libvirt) is needed to read the file.
    argv = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout
    assert not (REPOSITORY / ".vagrant").exists()


@pytest.mark.parametrize("name", ["INSTALL", "DROP_INBOUND", "NAT"])
def test_provisioning_scripts_are_shell(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=scripts()[name], text=True, check=True, timeout=10, capture_output=True)
    assert done.stderr == "", "such as a warning that a text in the script does not end"


@pytest.mark.skipif(
    shutil.which("nft") is None or os.geteuid() != 0, reason="missing: nft (apt-get install nftables) and root"
)
@pytest.mark.parametrize("name", ["DROP_INBOUND", "NAT"])
def test_nft_accepts_the_rules(name: str) -> None:
    rules = scripts()[name].split("<<'RULES'\n")[1].split("\nRULES\n")[0]
    check = ["unshare", "--net", "nft", "--check", "--file", "-"]
    subprocess.run(check, input=rules, text=True, check=True, timeout=10)
