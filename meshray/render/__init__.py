"""Configuration files for other programs, rendered from templates/.

>>> from pathlib import Path
>>> from meshray.home import Home
>>> home = Home(Path("/var/lib/meshray"), Path("/run/meshray"))
>>> print(systemd_unit(home, Path("/opt/meshray/bin/python")).splitlines()[3])
Description=meshray: overlay network and Ray node
"""

from meshray.render.slurm import Job, slurm_job
from meshray.render.systemd import UNIT_NAME, systemd_unit
from meshray.render.templates import render

__all__ = ["UNIT_NAME", "Job", "render", "slurm_job", "systemd_unit"]
