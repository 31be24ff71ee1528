"""The cluster itself: a plain pod runs, and finds what pods usually find."""

from __future__ import annotations

from tests.kube.conftest import Ground
from tests.kube.images import WORKER


def test_a_plain_pod_runs_and_finds_the_api_server(ground: Ground) -> None:
    kubernetes = ground.kubernetes
    command = ["sh", "-c", "wget -q -O- --no-check-certificate https://kubernetes.default/version; sleep 1000"]
    kubernetes.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "plain"},
            "spec": {
                "containers": [{"name": "plain", "image": WORKER, "command": command}],
                "terminationGracePeriodSeconds": 0,
            },
        }
    )
    logs = kubernetes.wait_until(lambda: kubernetes.kubectl("logs", "plain", check=False).stdout, 60, "its log")
    assert '"gitVersion": "v1.34' in logs
    assert kubernetes.execute("plain", "ping", "-c1", str(ground.head.address)).returncode == 0
    kubernetes.kubectl("delete", "pod", "plain")
