"""Modules that an agent does not load, tested in separate processes, since an imported module stays."""

from __future__ import annotations

import ast
import subprocess
import sys

#: Each costs an agent half a megabyte or more, although a node with an engine does not need it.
HEAVY = {
    "click",
    "frozenlist._frozenlist",
    "html.entities",
    "importlib.metadata",
    "jinja2",
    "multiprocessing",
    "prometheus_client",
    "pyroute2",
    "rich",
    "statistics",
    "unittest",
    "yaml",
}
SCRIPT = """
import sys
import meshray.agent.main
from meshray.client.aiohttp_lean import import_aiohttp
from meshray.installation.build import own_build
import_aiohttp()
own_build()
import meshray.client.tunnelled
from meshray.linux.addresses import interface_addresses
from meshray.wireguard.interface import open_interfaces
interface_addresses()
with open_interfaces() as interfaces:
    interfaces.addresses(interfaces.find("lo"))
print(sorted(sys.modules))
"""


def test_an_agent_does_not_import_these_modules() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    imported = set(ast.literal_eval(done.stdout))
    assert "aiohttp" in imported
    assert imported & HEAVY == set()
