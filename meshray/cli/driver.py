"""The environment of a driver, with which it finds the cluster and Ray's own programs.

>>> Driver.of(app).apply(os.environ)["RAY_ADDRESS"]
'10.99.0.1:6379'
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshray.cli.app import App

_ACTIVE = ("VIRTUAL_ENV", "CONDA_PREFIX")


@dataclass(frozen=True)
class Driver:
    """The environment that the agent reports.

    Attributes:
        variables: those by which Ray's programs find the cluster, and those of ``--env``.
        programs: the folder with `ray` and its `python`; empty: the agent does not know one.
        activation: the variables of an active Ray environment.
        uid: the uid of the user who runs Ray here.
    """

    variables: Mapping[str, str]
    programs: str = ""
    activation: Mapping[str, str] = field(default_factory=dict)
    uid: int = 0

    @classmethod
    def of(cls, app: App) -> Driver:
        """Ask the agent. Raises as `ControlClient.request` does."""
        from meshray.protocol.control import GetEnvironment

        found = app.control().request(GetEnvironment())
        return cls(found.env, found.programs, found.activation, found.user_uid or 0)

    def leads(self, environ: Mapping[str, str]) -> bool:
        """Return whether Ray's programs come first on PATH: not if an active environment has its own Ray."""
        active = [environ[name] for name in _ACTIVE if environ.get(name)]
        return bool(self.programs) and not any(Path(folder, "bin/ray").exists() for folder in active)

    def apply(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return this environment, changed for a driver."""
        path = environ.get("PATH", os.defpath)
        if not self.leads(environ):
            folders = [path, self.programs] if self.programs else [path]
            return {**environ, **self.variables, "PATH": os.pathsep.join(folders)}
        left = {name: value for name, value in environ.items() if name not in _ACTIVE}
        return {**left, **self.variables, **self.activation, "PATH": os.pathsep.join([self.programs, path])}
