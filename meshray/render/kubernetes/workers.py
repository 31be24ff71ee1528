"""Ray workers as pods: a Deployment of ephemeral nodes, as plain files or as a Helm chart.

                      ┌─ Plain ─► manifests: kubectl apply -f
    workers.yaml.j2 ──┤
                      └─ Chart ─► templates/workers.yaml of the chart, with values.yaml: helm install

>>> [line for line in manifests(Workers(replicas=3)).splitlines() if line.startswith("  replicas:")]
['  replicas: 3']
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from meshray.render.kubernetes import values
from meshray.render.kubernetes.archive import packed
from meshray.render.kubernetes.dialect import Chart, Dialect, Plain
from meshray.render.kubernetes.pods import Pods
from meshray.render.kubernetes.schema import schema
from meshray.render.templates import render
from meshray.render.yaml_scalars import FILTERS

_TEMPLATE = "kubernetes/workers.yaml.j2"
CHART_NAME = "meshray-workers"
#: A pod's name, which is the node's, has 17 more characters than its Deployment's and at most 63.
_LONGEST_NAME = 46
#: After the drain, for the end of Ray's processes and the tunnel, seconds.
_LEAVE_S = 45


@dataclass(frozen=True)
class Workers(Pods):
    """The pods of one Deployment.

    Attributes:
        labels: K=V of the Ray nodes.
        ray_args: more options of `ray start`.
        rootless: without root and NET_ADMIN, in a pod with its own user namespace.
    """

    name: str = "meshray-worker"
    replicas: int = 2
    labels: tuple[str, ...] = ()
    ray_args: tuple[str, ...] = ()
    rootless: bool = False

    @property
    def shm(self) -> int:
        """The size of /dev/shm, bytes."""
        return values.shm_size(self.object_store)


#: The units of a quantity of memory.
_UNITS = tuple(unit for unit in values.SCALES if unit != "m")
#: The values of the chart that are not in `Workers` under the same name: an expression of Go's templates for each name
#: in the template. Numbers in YAML are floats in Helm.
_EXPRESSIONS = {
    "name": '(include "meshray.name" .)',
    "namespace": ".Release.Namespace",
    "pull_policy": ".Values.pullPolicy",
    "pull_secret": ".Values.pullSecret",
    "cpus": '(include "meshray.cpus" .)',
    "cpu_request": "(default .Values.cpu .Values.cpuRequest)",
    "memory_request": "(default .Values.memory .Values.memoryRequest)",
    "memory": '(include "meshray.memory" .)',
    "gpu_resource": ".Values.gpuResource",
    "object_store": "(int64 .Values.objectStoreMemory)",
    "shm": '(include "meshray.shm" .)',
    "token_secret": ".Values.tokenSecret",
    "tun_is_host": f'(eq .Values.tun "{values.TUN_OF_HOST}")',
    "tun_is_resource": f'(not (has .Values.tun (list "{values.TUN_OF_HOST}" "{values.NO_TUN}")))',
    "drain": '(printf "%ds" (int64 .Values.drainSeconds))',
    "grace_s": f"(add (int64 .Values.drainSeconds) {_LEAVE_S})",
    "ray_args": ".Values.rayArgs",
    "log_format": ".Values.logFormat",
    "read_only": ".Values.readOnlyRootFilesystem",
    **dict.fromkeys(("image", "replicas", "cpu", "gpus", "tun", "labels", "rootless"), ""),
}


def manifests(workers: Workers) -> str:
    """Return the objects for `kubectl apply`.

    Raises:
        UsageError: ``kubernetes_value``, if Kubernetes would refuse a value.
        MeshrayError: templates_missing.
    """
    return _filled_in(workers, Plain(_plain(workers)), plain=True)


def chart(workers: Workers, version: str) -> bytes:
    """Return a Helm chart, packed, whose default values are these workers.

    Args:
        version: of meshray.

    Raises:
        UsageError: ``kubernetes_value``, if Kubernetes would refuse a value.
        MeshrayError: templates_missing.
    """
    objects = _filled_in(workers, Chart(_EXPRESSIONS), plain=False)
    known = {
        **{"workers": workers, "plain": _plain(workers), "version": version, "chart": CHART_NAME},
        **{
            "longest_name": _LONGEST_NAME,
            "values": values,
            "scales": {unit: int(values.SCALES[unit]) for unit in _UNITS},
        },
    }
    files = {
        name: render(f"kubernetes/chart/{name}.j2", known, FILTERS)
        for name in ("Chart.yaml", "values.yaml", "templates/NOTES.txt", "templates/_helpers.tpl")
    }
    files |= {"templates/workers.yaml": objects, "values.schema.json": json.dumps(schema(), indent=2) + "\n"}
    return packed(CHART_NAME, files)


def _filled_in(workers: Workers, dialect: Dialect, *, plain: bool) -> str:
    known = {
        **dialect.names,
        "plain": plain,
        "namespace": workers.namespace,
        "image": workers.image,
        "token_secret": workers.token_secret,
    }
    # A value that adds no line leaves an empty one.
    return "".join(line for line in render(_TEMPLATE, known, FILTERS).splitlines(keepends=True) if line.strip())


def _plain(workers: Workers) -> dict[str, object]:
    """Return the values of the template. Raises UsageError ``kubernetes_value``."""
    workers.check_names(_LONGEST_NAME, rootless=workers.rootless)
    for option, words in (("--label", workers.labels), ("--ray-arg", workers.ray_args)):
        values.require_printable(words, option)
    values.require_room(workers.object_store, workers.memory)
    return {
        **vars(workers),
        "pull_policy": "IfNotPresent",
        "cpus": values.cpus(workers.cpu),
        "cpu_request": workers.cpu,
        "memory_request": workers.memory,
        "shm": workers.shm,
        "tun_is_host": workers.tun == values.TUN_OF_HOST,
        "tun_is_resource": workers.tun_is_resource,
        "drain": f"{workers.drain_s}s",
        "grace_s": workers.drain_s + _LEAVE_S,
        "read_only": True,
    }
