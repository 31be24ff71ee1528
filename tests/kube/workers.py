"""Worker pods as `meshray render kubernetes` prints them, and the Secret with their token."""

from __future__ import annotations

import base64
from typing import Any

from tests.kube.images import WORKER
from tests.lab.cluster import Cluster
from tests.lab.host import Host

NAME = "worker"
#: The name that the rendered manifests expect.
SECRET = "meshray-token"
#: Two pods and their Rays fit into a node of two processors.
_SIZE = ("--cpu=900m", "--memory=2Gi", "--object-store=150Mi", "--drain=10s")


def rendered(host: Host, *options: str) -> str:
    """Return the manifests of two workers, which a user on this host asks for."""
    words = ["meshray", "render", "kubernetes", f"--name={NAME}", f"--image={WORKER}", *_SIZE, *options]
    return host.run(words).stdout


def new_token(cluster: Cluster, *options: str) -> str:
    """Return a new token for ephemeral nodes."""
    words = ["meshray", "token", "create", "--json", "--ephemeral", *options]
    return str(cluster.head.run(words).json()["token"])


def secret(token: str, name: str = SECRET) -> dict[str, Any]:
    """Return a Secret with this token, by default the one for workers."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "data": {"token": base64.b64encode(token.encode()).decode()},
    }
