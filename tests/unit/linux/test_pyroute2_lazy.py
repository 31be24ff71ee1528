"""Each test runs in a separate process, because an imported module stays."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    lean = "import sys; from meshray.linux.pyroute2_lazy import allow_submodule_imports; allow_submodule_imports(); "
    return subprocess.run(
        [sys.executable, "-c", lean + code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_unused_modules_are_not_imported() -> None:
    code = "from pyroute2.iproute.linux import IPRoute; print('pyroute2.ndb.main' in sys.modules)"
    assert run(code) == "False"


def test_the_package_exports_everything() -> None:
    code = "import pyroute2 as p; from pyroute2.iproute.linux import IPRoute; print(p.NDB, p.IPRoute is IPRoute)"
    assert run(code) == "<class 'pyroute2.ndb.main.NDB'> True"


def test_a_missing_attribute_is_none() -> None:
    assert run("import pyroute2 as p; print(hasattr(p, '__wrapped__'), hasattr(p, 'nothing'))") == "False False"


def test_wireguard_comes_alone_too() -> None:
    code = "from pyroute2.netlink.generic.wireguard import WireGuard; print('pyroute2.ndb.main' in sys.modules)"
    assert run(code) == "False"
