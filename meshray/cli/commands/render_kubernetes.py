"""`meshray render kubernetes`: pods that are nodes of the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meshray.cli.options import json_option, parse_duration
from meshray.cli.output_file import output_option, packed, written

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.cli.file_result import FileResult


@click.command("kubernetes")
@click.option("--name", default="meshray-worker", show_default=True, metavar="NAME", help="The Deployment's name.")
@click.option("--namespace", default="", metavar="NAME", help="The namespace; default: that of kubectl's context.")
@click.option("--replicas", type=click.IntRange(0, 10_000), default=2, show_default=True, help="How many pods.")
@click.option(
    "--image",
    default="meshray-worker",
    show_default=True,
    metavar="IMAGE",
    help="The image, built from containers/Dockerfile.worker, with the head's Ray and Python.",
)
@click.option("--pull-secret", default="", metavar="NAME", help="The Secret for the image's registry.")
@click.option("--cpu", default="2", show_default=True, metavar="QUANTITY", help="The CPUs of each pod.")
@click.option(
    "--memory",
    default="8Gi",
    show_default=True,
    metavar="QUANTITY",
    help="The memory of each pod, which includes the object store.",
)
@click.option("--gpus", type=click.IntRange(0, 1024), default=0, metavar="N", help="The GPUs of each pod.")
@click.option(
    "--gpu-resource",
    default="nvidia.com/gpu",
    show_default=True,
    metavar="RESOURCE",
    help="The resource of the GPUs' device plugin.",
)
@click.option(
    "--object-store", default="2Gi", show_default=True, metavar="QUANTITY", help="Ray's object store, in /dev/shm."
)
@click.option(
    "--token-secret",
    default="meshray-token",
    show_default=True,
    metavar="NAME",
    help="The Secret whose key `token` is a token of the mesh.",
)
@click.option(
    "--tun",
    default="host",
    show_default=True,
    metavar="host|none|RESOURCE",
    help="/dev/net/tun, for machines whose kernel has no WireGuard: the machine's own, none, or the resource of a "
    "device plugin, as in squat.ai/tun.",
)
@click.option(
    "--drain",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long running tasks may take to end when a pod ends: 60s, 10m.",
)
@click.option("--label", multiple=True, metavar="K=V", help="A label of the Ray nodes. May be repeated.")
@click.option(
    "--ray-arg", multiple=True, metavar="ARG", help="An argument for `ray start` in every pod. May be repeated."
)
@click.option("--json-logs", is_flag=True, help="Log one JSON object per line.")
@click.option(
    "--rootless",
    is_flag=True,
    help="Without root and NET_ADMIN, in pods with their own user namespace. Needs --tun RESOURCE.",
)
@click.option("--chart", is_flag=True, help="Write a Helm chart with these values instead; needs -o FILE.tgz.")
@output_option
@json_option
@click.pass_obj
def kubernetes_command(
    app: App,
    *,
    name: str,
    namespace: str,
    replicas: int,
    image: str,
    pull_secret: str,
    cpu: str,
    memory: str,
    gpus: int,
    gpu_resource: str,
    object_store: str,
    token_secret: str,
    tun: str,
    drain: str,
    label: tuple[str, ...],
    ray_arg: tuple[str, ...],
    json_logs: bool,
    rootless: bool,
    chart: bool,
    output: str | None,
) -> FileResult:
    """Print a Deployment whose pods join this mesh as Ray workers.

    \b
    Examples:
      meshray render kubernetes --replicas 4 --image registry.example.org/worker:1 -o workers.yaml
      meshray render kubernetes --gpus 1 --cpu 8 --memory 64Gi --object-store 16Gi -o workers.yaml
      meshray render kubernetes --chart -o meshray-workers.tgz

    A pod is ready when Ray counts it as ALIVE, and leaves the mesh when it ends. The file contains no secret: the token
    is in a Secret of the cluster. The comments at the top of the file say what to do before `kubectl apply`.
    """
    from meshray import __version__
    from meshray.raynode.command import check_extra_args
    from meshray.render import kubernetes

    check_extra_args(ray_arg)
    workers = kubernetes.Workers(
        name=name,
        namespace=namespace,
        image=image,
        replicas=replicas,
        cpu=cpu,
        memory=memory,
        gpus=gpus,
        gpu_resource=gpu_resource,
        object_store=kubernetes.memory(object_store, "--object-store"),
        token_secret=token_secret,
        pull_secret=pull_secret,
        tun=tun,
        drain_s=parse_duration(drain),
        labels=label,
        ray_args=ray_arg,
        log_format="json" if json_logs else "",
        rootless=rootless,
    )
    if chart:
        following = "helm install NAME {}"
        return packed(app, "kubernetes", kubernetes.chart(workers, __version__), output, following)
    return written(app, "kubernetes", kubernetes.manifests(workers), output, "kubectl apply -f {}")
