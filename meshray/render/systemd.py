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

#: The name of the unit.
UNIT_NAME = "meshray.service"
_RUN = Path("/run")
#: systemd rejects these ("Executable name contains special characters"), even if they are escaped.
_NOT_IN_A_PROGRAM = set("\"'\\")
_GIVE_UP = (
    {"status": UsageError.exit_code, "why": "invalid settings"},
    {"status": RefusedError.exit_code, "why": "the node was removed from the mesh"},
)


def quoted(text: str) -> str:
    """Quote one word of a unit file, so that spaces, quotes, backslashes and per cent signs are literal.

    Raises:
        MeshrayError: unit_value, if the text contains a control character.
    """
    if not text.isprintable():
        raise MeshrayError("unit_value", f"{text!r} cannot be part of a systemd unit: it contains a control character")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _check_program(program: Path) -> None:
    if not program.is_absolute():
        raise MeshrayError("unit_value", f"{program} cannot be part of a systemd unit: the path is not absolute")
    if _NOT_IN_A_PROGRAM & set(str(program)):
        raise MeshrayError(
            "unit_value",
            f"systemd rejects programs whose path contains quotes or a backslash: {program}",
            hint="install meshray into a folder without these characters",
        )


def systemd_unit(home: Home, python: Path, environment: Mapping[str, str] | None = None) -> str:
    """Return the text of meshray.service.

    Args:
        home: the state and run folders of the agent.
        python: the absolute path of the interpreter of meshray's environment. It is not resolved, because the symbolic
            link of a virtual environment identifies the environment.
        environment: more settings for the agent (MESHRAY_WIREGUARD, HTTPS_PROXY). It must not contain secrets,
            because every user of the machine can read a unit.

    Raises:
        MeshrayError: unit_value, templates_missing.
    """
    _check_program(python)
    settings = {**(environment or {}), "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)}
    values = {
        "python": str(python),
        "environment": settings,
        # systemd creates only folders directly below /run; the agent creates any other.
        "runtime_directory": home.run.name if home.run.parent == _RUN else "",
        "give_up": _GIVE_UP,
    }
    return render("meshray.service.j2", values, {"quoted": quoted})
