"""Of pyroute2 only the part that is used is imported.

Its package file imports every protocol that it knows: 6 MB of memory in each agent, and a twentieth of a second
(several on a slow machine) in each command that looks at an interface.

    with open_iproute() as netlink:
        netlink.get_rules()

The agent needs neither: what it does is in `meshray.linux.rtnetlink`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute


def open_iproute() -> IPRoute:
    """Return a socket of pyroute2 for rtnetlink; not for a thread in which an event loop runs: it runs its own."""
    lean_pyroute2()
    from pyroute2.iproute.linux import IPRoute

    return IPRoute()


def lean_pyroute2() -> None:
    """Lets modules of pyroute2 be imported without the package's own file.

    That file is run after all as soon as anybody asks the package itself for something
    (``from pyroute2 import NDB``), so that nobody sees a difference. Does nothing where pyroute2 was
    imported before, or is not there.
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
    # Another thread may have been here at the same time.
    sys.modules.setdefault("pyroute2", package)
