"""Root's copy of meshray, created once for all hosts.

It is needed if these tests run from an environment that users other than root can change: a clone in a user's home
folder, tested with sudo.

Otherwise each host would create its own, which takes seconds.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from meshray.runtime.privileged.install import first_untrusted_part

_PLACE = "from meshray.runtime.privileged import install; print(install.install_copy().folder)"
_BOUND_S = 120


@lru_cache(1)
def below_usr_local() -> tuple[str, ...]:
    """Return the folders to mount between the machine's /usr/local and a host's own: one with the copy, or none."""
    if first_untrusted_part() is None:
        return ()
    folder = Path(tempfile.mkdtemp(prefix="meshray-lab-copy-", dir="/run"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    upper, work = folder / "upper", folder / "work"
    for built in (upper, work):
        built.mkdir(mode=0o755)
    mount = f"mount -t overlay -o lowerdir=/usr/local,upperdir={upper},workdir={work} overlay /usr/local"
    subprocess.run(
        ["unshare", "--mount", "--", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, _PLACE],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=_BOUND_S,
        cwd="/",
    )
    return (str(upper),)
