"""A Kubernetes cluster of one node, in a host of a world; it ends with the host, and its control groups with `stop`.

    kubernetes = Kubernetes.start(host, f"{RunId.mine()}-kube")
    kubernetes.apply(manifest)
    kubernetes.wait_until_ready("deployment/worker")

The programs are the real ones: etcd and the CNI plugins as Debian has them, the rest from `programs`. Pods
reach the world through the host, which masquerades them and drops whatever they did not ask for.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.kube.programs import definitions, program
from tests.lab.host import Host, HostProcess, Result
from tests.lab.leftovers import CGROUPS, remove_cgroups
from tests.lab.waiting import wait_until

T = TypeVar("T")

PODS, SERVICES = "10.244.0.0/16", "10.96.0.0/16"
#: The time until a part answers, on two busy cores.
UP_S = 90
#: Ends each other process with this program or module in its command.
_KILL = """
import os, pathlib, signal, sys
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (folder / "cmdline").read_text(errors="replace").split("\\0")
    except OSError:
        continue
    if int(folder.name) != os.getpid() and sys.argv[1] in (word.rpartition("/")[2] for word in words):
        os.kill(int(folder.name), signal.SIGKILL)
        print("killed", flush=True)
"""
_FOLDER = "/var/lib/kubernetes"
_ADMIN = f"{_FOLDER}/admin.conf"
#: The resource of the device plugin for /dev/net/tun.
TUN_RESOURCE = "squat.ai/tun"
SANDBOX_IMAGE = "meshray.test/pause:1"
#: Of each kind of user: the name, and the groups.
_USERS = {
    "admin": ("admin", "system:masters"),
    "controllers": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "dns": ("coredns", "system:masters"),
    "operator": ("kuberay-operator", "system:masters"),
}
#: The kubelet changes these for the whole machine, so it gets copies of them.
_MACHINE_SETTINGS = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)
_CONTAINERD = f"""\
version = 2
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{SANDBOX_IMAGE}"
# Without CAP_SYS_RESOURCE no process may get the negative score of a sandbox.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{_FOLDER}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = "{program("runc")}"
"""
_CNI = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
#: What reaches the node from outside only if a pod asked for it, as behind a cloud's firewall.
_FIREWALL = """\
table inet node {
    chain input {
        type filter hook input priority filter - 5
        iifname "eth0" ct state new counter drop
    }
    chain forward {
        type filter hook forward priority filter - 5
        iifname "eth0" ct state new counter drop
    }
}
"""


class Kubernetes:
    """The cluster; see the module's docstring."""

    def __init__(self, host: Host, group: str) -> None:
        self.host = host
        self._group = group
        self._tokens = {name: secrets.token_hex(16) for name in (*_USERS, "kubelet")}
        self._services: dict[str, HostProcess] = {}

    @classmethod
    def start(cls, host: Host, group: str) -> Kubernetes:
        """Start all parts in a host; return when its node is ready.

        Args:
            group: the name of its control groups, which belong to the whole machine.
        """
        cluster = cls(host, group)
        try:
            cluster._furnish()
            cluster._start_containerd()
            cluster._start_control_plane()
            cluster._start_node()
            host.wait_until(cluster._node_is_ready, UP_S, "the node")
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def kubectl(self, *words: str | Path, check: bool = True, stdin: str = "", deadline_s: float = 60) -> Result:
        """Run kubectl as the administrator."""
        command = [program("kubectl"), f"--kubeconfig={_ADMIN}", *words]
        return self.host.run(command, check=check, stdin=stdin, deadline_s=deadline_s)

    def use_namespace(self, namespace: str) -> None:
        """Let kubectl use this namespace where no other is named."""
        self.kubectl("config", "set-context", "--current", f"--namespace={namespace}")

    def as_printed(self, script: str, deadline_s: float = 60) -> Result:
        """Run commands that a page prints as the administrator, in the folder /tmp."""
        folder = program("kubectl").parent
        return self.host.shell(f"set -eu; cd /tmp; PATH={folder}:$PATH\n{script}", deadline_s=deadline_s)

    def apply(self, *objects: Mapping[str, Any] | str, namespace: str = "") -> None:
        """Apply objects, or texts of YAML; a field that the server does not know is an error."""
        text = "\n---\n".join(one if isinstance(one, str) else json.dumps(one) for one in objects)
        words = ("apply", "--server-side", "--validate=strict", *_in(namespace), "--filename=-")
        self.kubectl(*words, stdin=text)

    def get(self, *words: str) -> Any:
        """Return the output of `kubectl get`, read as JSON."""
        return self.kubectl("get", "--output=json", *words).json()

    def pods(self, selector: str = "", namespace: str = "") -> list[dict[str, Any]]:
        """Return the pods that are not being deleted."""
        found = self.get("pods", f"--selector={selector}", *_in(namespace))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def start_in_pod(self, pod: str, *words: str, container: str) -> HostProcess:
        """Start a command in a pod without waiting."""
        options = (f"--kubeconfig={_ADMIN}", f"--container={container}")
        return self.host.popen([program("kubectl"), "exec", pod, *options, "--", *words], name=pod)

    def is_ready(self, pod: str) -> bool:
        """Return whether the pod exists and is ready."""
        words = ("get", "pod", pod, "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}")
        return self.kubectl(*words, check=False).stdout == "True"

    def kill(self, pod: str, name: str, container: str = "") -> bool:
        """Kill the processes of a program or module in a pod; return whether there were any."""
        done = self.execute(pod, "python", "-c", _KILL, name, container=container, check=False)
        return "killed" in done.stdout

    def execute(self, pod: str, *words: str, container: str = "", check: bool = True, deadline_s: float = 60) -> Result:
        """Run a command in a pod."""
        where = [f"--container={container}"] if container else []
        return self.kubectl("exec", pod, *where, "--", *words, check=check, deadline_s=deadline_s)

    def wait_until(self, condition: Callable[[], T], deadline_s: float, what: str) -> T:
        """Call `waiting.wait_until`, and show on failure what the cluster knows of its pods."""
        return wait_until(condition, deadline_s, what, evidence=self.evidence)

    def evidence(self) -> str:
        """Return pods, events and the ends of the containers' logs."""
        asked = (
            ("get", "pods", "--all-namespaces", "--output=wide"),
            ("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
            ("describe", "pods", "--all-namespaces"),
        )
        parts = [self.kubectl(*words, check=False).stdout[-12_000:] for words in asked]
        for log in sorted(self.host.path("/var/log/pods").glob("*/*/*.log")):
            parts.append(f"--- {log.parent.parent.name} {log.parent.name}\n{log.read_text(errors='replace')[-4000:]}")
        return "\n".join(parts)

    def import_image(self, tar: str) -> None:
        """Give the node the images of a tar in its host, as `docker save` writes it."""
        words = ["ctr", "--namespace=k8s.io", "images", "import", "--snapshotter=overlayfs", tar]
        self.host.run(words, deadline_s=180)

    def start_operator(self) -> None:
        """Start the KubeRay operator with the definitions of its resources; return when it works."""
        self.apply(*(file.read_text() for file in definitions()))
        options = ("--metrics-addr=127.0.0.1:8080", "--enable-leader-election=false")
        operator = self.program("kuberay-operator", *options, user="operator")
        metrics = ["wget", "-q", "-O-", "http://127.0.0.1:8080/metrics"]
        self.host.wait_until(
            lambda: self._runs(operator) and self.host.run(metrics, check=False).returncode == 0, UP_S, "the operator"
        )

    def start_tun_plugin(self) -> None:
        """Offer the machine's /dev/net/tun as a resource; return when the node has it."""
        if "tun-plugin" in self._services:
            return
        plugin = self.host.popen([sys.executable, "-m", "tests.kube.device_plugin", TUN_RESOURCE], name="tun-plugin")
        self._services["tun-plugin"] = plugin
        self.host.wait_until(
            lambda: (
                self._runs(plugin)
                and self.get("nodes")["items"][0]["status"]["allocatable"].get(TUN_RESOURCE, "0") != "0"
            ),
            UP_S,
            f"the resource {TUN_RESOURCE}",
        )

    @contextmanager
    def nftables_proxy(self, machine: Host) -> Iterator[None]:
        """Run kube-proxy with nftables on another machine, as on a node of this cluster, until the rules are there."""
        config = f"{_FOLDER}/nftables.json"
        rule = f"inet node input iifname eth0 ip saddr {machine.address} tcp dport 6443 accept"
        self.host.run(["nft", "insert", "rule", *rule.split()])
        machine.path(_FOLDER).mkdir()
        machine.path(f"{_FOLDER}/proxy.conf").write_text(self.host.path(f"{_FOLDER}/proxy.conf").read_text())
        machine.path(config).write_text(
            json.dumps({**_proxy_config(), "mode": "nftables", "nftables": {"masqueradeAll": True}})
        )
        words: list[str | Path] = [program("kube-proxy"), f"--config={config}", f"--hostname-override={self.host.name}"]
        proxy = machine.popen(words, name="nftables-proxy")
        try:
            listed = ["nft", "list", "table", "ip", "kube-proxy"]
            machine.wait_until(
                lambda: self._runs(proxy) and SERVICES in machine.run(listed, check=False).stdout, UP_S, "its rules"
            )
            yield
        finally:
            proxy.stop()
            for family in ("ip", "ip6"):
                machine.run(["nft", "delete", "table", family, "kube-proxy"], check=False)

    def program(self, name: str, *words: str, user: str = "", env: Mapping[str, str] | None = None) -> HostProcess:
        """Start a program of the cluster in its host; with a user, with the credentials of that one."""
        options = [f"--kubeconfig={_FOLDER}/{user}.conf"] if user else []
        process = self.host.popen([program(name), *options, *words], name=name, env=env)
        self._services[name] = process
        return process

    def stop(self) -> None:
        """End the host with all parts and all pods, and remove the control groups."""
        self.host.end()
        remove_cgroups(self._group)

    def _furnish(self) -> None:
        host = self.host
        for hierarchy in _hierarchies():
            (hierarchy / self._group).mkdir(exist_ok=True)
        for setting in _MACHINE_SETTINGS:
            copy = f"/run/settings/{setting}"
            host.shell(f"mkdir -p $(dirname {copy}) && cat /proc/sys/{setting} > {copy}")
            host.shell(f"mount --bind {copy} /proc/sys/{setting}")
        host.shell(f"mkdir -p {_FOLDER}/cni /etc/containerd && echo 1 > /proc/sys/net/ipv4/ip_forward")
        host.run(["nft", "-f", "-"], stdin=_FIREWALL)
        # Pods with a user namespace: the root of theirs passes this folder, which the shim of the Docker engine has
        # created for root only; and the kernel lets them mount /proc only if one is visible without such copies.
        host.shell("mkdir -p /run/containerd /run/proc && chmod 711 /run/containerd && mount -t proc proc /run/proc")
        self._write("cni/pods.conflist", json.dumps(_CNI))
        self._write("containerd.toml", _CONTAINERD)
        self._write("resolv.conf", f"nameserver {host.address}\n")
        host.run(["openssl", "genrsa", "-out", f"{_FOLDER}/accounts.key", "2048"])
        users = {**_USERS, "kubelet": (f"system:node:{host.name}", "system:nodes")}
        lines = []
        for key, (name, groups) in users.items():
            lines.append(f'{self._tokens[key]},{name},{name},"{groups}"')
            self._write(f"{key}.conf", json.dumps(self._kubeconfig(key)))
        self._write("tokens.csv", "\n".join(lines) + "\n")
        host.environment["KUBECONFIG"] = _ADMIN

    def _start_containerd(self) -> None:
        containerd = program("containerd")
        # It finds the shim, which is beside it, only in PATH.
        path = f"{containerd.parent}:{os.environ['PATH']}"
        words: list[str | Path] = [containerd, f"--config={_FOLDER}/containerd.toml"]
        process = self.host.popen(words, name="containerd", env={"PATH": path})
        self._services["containerd"] = process
        self.host.wait_until(
            lambda: self._runs(process) and self.host.run(["ctr", "version"], check=False).returncode == 0,
            UP_S,
            "containerd",
        )

    def _start_control_plane(self) -> None:
        etcd = ["etcd", f"--data-dir={_FOLDER}/etcd", "--listen-client-urls=http://127.0.0.1:2379"]
        urls = ["--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380"]
        self._services["etcd"] = self.host.popen([*etcd, *urls], name="etcd")
        server = self.program(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={self.host.address}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--cert-dir={_FOLDER}/certificates",
            f"--token-auth-file={_FOLDER}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={_FOLDER}/accounts.key",
            f"--service-account-signing-key-file={_FOLDER}/accounts.key",
        )
        asked = ("get", "--raw=/readyz")
        self.host.wait_until(
            lambda: self._runs(server) and self.kubectl(*asked, check=False).returncode == 0, UP_S, "the API server"
        )
        self.program(
            "kube-controller-manager",
            "--leader-elect=false",
            f"--service-account-private-key-file={_FOLDER}/accounts.key",
            f"--root-ca-file={_FOLDER}/certificates/apiserver.crt",
            "--use-service-account-credentials=true",
            "--flex-volume-plugin-dir=/var/lib/kubelet/plugins",
            user="controllers",
        )
        self.program("kube-scheduler", "--leader-elect=false", user="scheduler")

    def _start_node(self) -> None:
        self._write("kubelet.json", json.dumps(self._kubelet_config()))
        self._write("proxy.json", json.dumps(_proxy_config()))
        self._write("Corefile", _corefile(self.host))
        self.program("kubelet", f"--config={_FOLDER}/kubelet.json", f"--node-ip={self.host.address}", user="kubelet")
        self.program("kube-proxy", f"--config={_FOLDER}/proxy.json", f"--hostname-override={self.host.name}")
        self.program("coredns", f"-conf={_FOLDER}/Corefile")

    def _kubelet_config(self) -> dict[str, Any]:
        return {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._group}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "clusterDNS": [str(self.host.address)],
            "clusterDomain": "cluster.local",
            "resolvConf": f"{_FOLDER}/resolv.conf",
            "syncFrequency": "5s",
            "volumePluginDir": "/var/lib/kubelet/plugins",
            "evictionHard": {"memory.available": "10Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
        }

    def _kubeconfig(self, user: str) -> dict[str, Any]:
        server = {"server": f"https://{self.host.address}:6443", "insecure-skip-tls-verify": True}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "kube", "cluster": server}],
            "users": [{"name": user, "user": {"token": self._tokens[user]}}],
            "contexts": [{"name": "kube", "context": {"cluster": "kube", "user": user}}],
            "current-context": "kube",
        }

    def _node_is_ready(self) -> bool:
        for name in ("kubelet", "kube-proxy", "coredns"):
            self._runs(self._services[name])
        nodes = self.get("nodes")["items"]
        conditions = [one for node in nodes for one in node["status"]["conditions"]]
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        return ready and self.kubectl("get", "serviceaccount", "default", check=False).returncode == 0

    def _runs(self, process: HostProcess) -> bool:
        assert process.returncode is None, process.output[-4000:]
        return True

    def _write(self, name: str, text: str) -> None:
        path = self.host.path(f"{_FOLDER}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _in(namespace: str) -> list[str]:
    return [f"--namespace={namespace}"] if namespace else []


def _hierarchies() -> list[Path]:
    """Return the roots of the control groups: one for each controller in version 1, one in version 2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _proxy_config() -> dict[str, Any]:
    return {
        "kind": "KubeProxyConfiguration",
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "mode": "iptables",
        "clusterCIDR": PODS,
        "clientConnection": {"kubeconfig": f"{_FOLDER}/proxy.conf"},
        # Without the module br_netfilter, answers between two pods would pass by the rules.
        "iptables": {"masqueradeAll": True},
        # These limits are the machine's.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _corefile(host: Host) -> str:
    return f"""\
.:53 {{
    bind {host.address} 127.0.0.1
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {_FOLDER}/dns.conf kube
        pods insecure
        ttl 1
    }}
}}
"""
