"""A virtual environment with meshray in a user's home folder, like that of the README, created without a network.

meshray itself is a copy of the user's own; its dependencies come from the environment of these tests.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from meshray.render.templates import folder as templates_folder
from tests.lab.host import REPOSITORY, USER, Host

ENVIRONMENT = Path(f"/home/{USER}/ray")
PROGRAM = ENVIRONMENT / "bin/meshray"
PACKAGES = ENVIRONMENT / f"lib/python3.{sys.version_info[1]}/site-packages"


#: Ray's own program, on this environment's Python.
RAY = f"#!{ENVIRONMENT}/bin/python\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n"


def make(host: Host, *, with_ray: bool = False) -> None:
    """Create the environment, which belongs to the user."""
    base = Path(sys._base_executable)  # type: ignore[attr-defined]
    host.run([base, "-m", "venv", "--without-pip", ENVIRONMENT], user=USER)
    host.run(["cp", "-r", "--preserve=timestamps", REPOSITORY / "meshray", PACKAGES], user=USER)
    if not (REPOSITORY / "meshray/templates").exists():
        host.run(["cp", "-r", templates_folder(), PACKAGES / "meshray/templates"], user=USER)
    others = sysconfig.get_path("purelib")
    host.shell(f"echo {others} > {PACKAGES}/others.pth", user=USER)
    script = f"#!{ENVIRONMENT}/bin/python\nimport sys\nfrom meshray.cli.entry import main\nsys.exit(main())\n"
    host.shell(f"cat > {PROGRAM} && chmod 755 {PROGRAM}", user=USER, stdin=script)
    if with_ray:
        host.shell(f"cat > {ENVIRONMENT}/bin/ray && chmod 755 {ENVIRONMENT}/bin/ray", user=USER, stdin=RAY)


def allow_sudo(host: Host) -> None:
    """Let the user become root without a password, by the real sudo."""
    rule = f"{USER} ALL=(ALL) NOPASSWD: ALL\n"
    host.shell("mkdir -p /etc/sudoers.d && cat > /etc/sudoers.d/lab && chmod 440 /etc/sudoers.d/lab", stdin=rule)
    # PAM treats an account without this line as locked.
    host.shell(f"grep -q '^{USER}:' /etc/shadow || echo '{USER}:*:19000:0:99999:7:::' >> /etc/shadow")
