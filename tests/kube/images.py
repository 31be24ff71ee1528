"""The images of the cluster's pods, built by a Docker engine without a registry and handed to containerd.

The node's image comes from containers/Dockerfile, on a base that has what rayproject/ray has and a node needs.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from tests.container.base import build_node, libraries
from tests.container.engine import DockerEngine
from tests.kube.kubernetes import SANDBOX_IMAGE
from tests.lab.host import Host

#: A node: Ray with Serve, and meshray.
WORKER = "meshray.test/worker:1"


def build(host: Host, group: str) -> str:
    """Return the path of a tar in this host with all images.

    Args:
        group: the name of the engine's control groups.
    """
    # Its rules for packets would hold for the pods too.
    engine = DockerEngine.start(host, group, "--iptables=false", "--bridge=none")
    try:
        base, pause = host.path("/tmp/base.tar"), host.path("/tmp/pause.tar")
        build_node(engine.docker, base, "/tmp/base.tar", WORKER, extras=("default", "serve"))
        _write_pause(pause)
        entry = 'ENTRYPOINT ["/usr/bin/sleep", "infinity"]'
        engine.docker("import", f"--change={entry}", "/tmp/pause.tar", SANDBOX_IMAGE)
        engine.docker("save", "--output=/tmp/images.tar", SANDBOX_IMAGE, WORKER)
    finally:
        engine.stop()
        host.shell("rm -rf /var/lib/docker")
    return "/tmp/images.tar"


def _write_pause(target: Path) -> None:
    """Write the file system of a sandbox: a program that does nothing, and its libraries."""
    found = shutil.which("sleep")
    assert found
    program = Path(found).resolve()
    with tarfile.open(target, "w") as tar:
        tar.add(program, "usr/bin/sleep")
        for place, library in libraries({program}).items():
            tar.add(library, str(place).lstrip("/"))
        for name in ("lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
