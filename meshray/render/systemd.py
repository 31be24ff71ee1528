r"""The unit under which systemd runs the agent.

>>> quoted('/home/ann lee/100%/"x"')
'"/home/ann lee/100%%/\\"x\\""'
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meshray.errors import MeshrayError, RefusedError, UsageError
from meshray.home import Home
from meshray.render.templates import render

#: What `systemctl` calls it.
UNIT_NAME = "meshray.service"
_RUN = Path("/run")
#: "Executable name contains special characters", says systemd, however they are escaped.
_NOT_IN_A_PROGRAM = set("\"'\\")
_GIVE_UP = (
    {"status": UsageError.exit_code, "why": "wrong settings"},
    {"status": RefusedError.exit_code, "why": "a node that the coordinator does not know any more"},
)


def quoted(text: str) -> str:
    """One word of a unit file: spaces, quotes and backslashes mean themselves, and so does the per cent sign.

    Raises:
        MeshrayError: unit_value, for a control character, which no sane path or setting holds.
    """
    if not text.isprintable():
        raise MeshrayError("unit_value", f"{text!r} cannot stand in a systemd unit: it holds a control character")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _check_program(program: Path) -> None:
    if not program.is_absolute():
        raise MeshrayError("unit_value", f"{program} cannot stand in a systemd unit: the path is not absolute")
    if _NOT_IN_A_PROGRAM & set(str(program)):
        raise MeshrayError(
            "unit_value",
            f"systemd runs no program whose path holds quotes or a backslash: {program}",
            hint="install meshray into a folder with a plainer name",
        )


def systemd_unit(home: Home, python: Path, environment: Mapping[str, str] | None = None) -> str:
    """The text of meshray.service.

    Args:
        home: whose state and run folders the agent uses.
        python: the absolute path of the interpreter of meshray's environment. Not resolved: in a virtual environment
            the symbolic link is what tells the interpreter where it is.
        environment: more settings for the agent (MESHRAY_WIREGUARD, HTTPS_PROXY). Any user of the machine can read
            a unit: no secrets.

    Raises:
        MeshrayError: unit_value, templates_missing.
    """
    _check_program(python)
    settings = {**(environment or {}), "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)}
    values = {
        "python": str(python),
        "environment": settings,
        # systemd makes folders directly under /run only; the agent makes any other itself.
        "runtime_directory": home.run.name if home.run.parent == _RUN else "",
        "give_up": _GIVE_UP,
    }
    return render("meshray.service.j2", values, {"quoted": quoted})
