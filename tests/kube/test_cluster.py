"""The cluster itself: a plain pod runs, and finds what pods usually find."""

from __future__ import annotations

import pytest

from tests.kube.conftest import Ground
from tests.kube.images import WORKER

_WHOSE_NETWORK = """
from meshray.linux.hidden_processes import shares_machines_network
print("the machine's" if shares_machines_network() else "the pod's", flush=True)
"""


@pytest.mark.parametrize(("of_machine", "expected"), [(False, "the pod's"), (True, "the machine's")])
def test_a_pod_knows_whose_network_it_uses(ground: Ground, of_machine: bool, expected: str) -> None:
    kubernetes = ground.kubernetes
    # As on the machines of kind: this one has no card, because it is a container itself.
    assert not list(ground.kubernetes.host.path("/sys/class/net").glob("*/device"))
    name = f"network-{of_machine}".lower()
    container = {"name": "plain", "image": WORKER, "command": ["python", "-c", _WHOSE_NETWORK]}
    specification = {"containers": [container], "hostNetwork": of_machine, "restartPolicy": "Never"}
    kubernetes.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": specification})
    log = kubernetes.wait_until(lambda: kubernetes.kubectl("logs", name, check=False).stdout, 60, "its log")
    kubernetes.kubectl("delete", "pod", name, "--grace-period=0", "--force")
    assert log.strip() == expected


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
