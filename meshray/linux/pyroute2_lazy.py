"""Import only the needed part of pyroute2.

The package file of pyroute2 imports all its protocols: 6 MB of memory in each agent, and a twentieth of a second
(several on a slow machine) in each command that inspects an interface.

    with open_iproute() as netlink:
        netlink.get_rules()

The agent does not use pyroute2, but `meshray.linux.rtnetlink`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute


def open_iproute() -> IPRoute:
    """Return a pyroute2 socket for rtnetlink. It runs its own event loop, so the thread must not have one."""
    allow_submodule_imports()
    from pyroute2.iproute.linux import IPRoute

    return IPRoute()


def allow_submodule_imports() -> None:
    """Make modules of pyroute2 importable without running the package file.

    The package file runs as soon as a name of the package itself is used (``from pyroute2 import NDB``), so other code
    is not affected. The function does nothing if pyroute2 was imported before, or is not installed.
    """
    if "pyroute2" in sys.modules:
        return
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or spec.loader is None:
        return
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def from_whole_package(name: str) -> object:
        # The import system and debuggers look for names like __wrapped__ in every module.
        if name.startswith("__"):
            raise AttributeError(name)
        if importlib.util.find_spec(f"pyroute2.{name}"):
            return importlib.import_module(f"pyroute2.{name}")
        package.__dict__.pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = from_whole_package
    # Another thread may have run this at the same time.
    sys.modules.setdefault("pyroute2", package)
