"""`meshray render kubernetes` and `meshray render kuberay`: pods that are nodes of the mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meshray.cli.options import json_option, parse_duration, parse_labels
from meshray.cli.output_file import output_option, packed, written
from meshray.defaults import MOST_GPUS, MOST_PODS
from meshray.errors import UsageError

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.cli.file_result import FileResult

F = TypeVar("F", bound=Callable[..., Any])


def pod_options(function: F) -> F:
    """Add the options that all pods share."""
    for decorator in reversed(
        (
            click.option(
                "--namespace", default="", metavar="NAME", help="The namespace; default: that of kubectl's context."
            ),
            click.option(
                "--image",
                default="meshray-worker",
                show_default=True,
                metavar="IMAGE",
                help="The image, built from containers/Dockerfile, with the Ray and Python of the mesh.",
            ),
            click.option("--pull-secret", default="", metavar="NAME", help="The Secret for the image's registry."),
            click.option("--cpu", default="2", show_default=True, metavar="QUANTITY", help="The CPUs of each worker."),
            click.option(
                "--memory",
                default="8Gi",
                show_default=True,
                metavar="QUANTITY",
                help="The memory of each worker, which includes the object store.",
            ),
            click.option(
                "--gpus", type=click.IntRange(0, MOST_GPUS), default=0, metavar="N", help="The GPUs of each worker."
            ),
            click.option(
                "--gpu-resource",
                default="nvidia.com/gpu",
                show_default=True,
                metavar="RESOURCE",
                help="The resource of the GPUs' device plugin.",
            ),
            click.option(
                "--object-store",
                default="2Gi",
                show_default=True,
                metavar="QUANTITY",
                help="The object store of each worker.",
            ),
            click.option(
                "--token-secret",
                default="meshray-token",
                show_default=True,
                metavar="NAME",
                help="The Secret whose key `token` is a token of the mesh.",
            ),
            click.option(
                "--tun",
                default="host",
                show_default=True,
                metavar="host|none|RESOURCE",
                help="/dev/net/tun, for machines whose kernel has no WireGuard: the machine's own, none, or the "
                "resource of a device plugin, as in squat.ai/tun.",
            ),
            click.option(
                "--drain",
                default="60s",
                show_default=True,
                metavar="TIME",
                help="How long running tasks may take to end when a pod ends: 60s, 10m.",
            ),
            click.option("--json-logs", is_flag=True, help="Log one JSON object per line."),
            output_option,
            json_option,
        )
    ):
        function = decorator(function)
    return function


@click.command("kubernetes")
@click.option("--name", default="meshray-worker", show_default=True, metavar="NAME", help="The Deployment's name.")
@click.option("--replicas", type=click.IntRange(0, MOST_PODS), default=2, show_default=True, help="How many pods.")
@pod_options
@click.option("--label", multiple=True, metavar="K=V", help="A label of the Ray nodes. May be repeated.")
@click.option(
    "--ray-arg", multiple=True, metavar="ARG", help="An argument for `ray start` in every pod. May be repeated."
)
@click.option(
    "--rootless",
    is_flag=True,
    help="Run without root and NET_ADMIN, in pods with their own user namespace. Needs --tun RESOURCE.",
)
@click.option("--chart", is_flag=True, help="Write a Helm chart with these values instead; needs -o FILE.tgz.")
@click.pass_obj
def kubernetes_command(
    app: App,
    /,
    *,
    name: str,
    replicas: int,
    label: tuple[str, ...],
    ray_arg: tuple[str, ...],
    rootless: bool,
    chart: bool,
    output: str | None,
    **pods: Any,
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
    from meshray.raynode.command import check_extra_args, check_labels
    from meshray.render import kubernetes

    check_extra_args(ray_arg)
    check_labels(parse_labels(label))
    workers = kubernetes.Workers(
        name=name,
        replicas=replicas,
        labels=label,
        ray_args=ray_arg,
        rootless=rootless,
        **_pod_fields(**pods),
    )
    if chart:
        following = f"helm install {name} {{}}{_in(pods)}"
        return packed(app, "kubernetes", kubernetes.chart(workers, __version__), output, following)
    return written(app, "kubernetes", kubernetes.manifests(workers), output, "kubectl apply -f {}")


@click.command("kuberay")
@click.option("--name", default="ray", show_default=True, metavar="NAME", help="The RayCluster's name.")
@click.option("--ray-version", default="2.60.0", show_default=True, metavar="X.Y.Z", help="The Ray in the image.")
@click.option(
    "--workers", type=click.IntRange(0, MOST_PODS), default=2, show_default=True, help="The worker pods at the start."
)
@click.option(
    "--min-workers", type=click.IntRange(0, MOST_PODS), default=0, show_default=True, help="The autoscaler's minimum."
)
@click.option(
    "--max-workers", type=click.IntRange(0, MOST_PODS), default=10, show_default=True, help="The autoscaler's maximum."
)
@click.option("--head-cpu", default="2", show_default=True, metavar="QUANTITY", help="The CPUs of the head.")
@click.option("--head-memory", default="8Gi", show_default=True, metavar="QUANTITY", help="The memory of the head.")
@click.option(
    "--head-token-secret",
    default="meshray-head-token",
    show_default=True,
    metavar="NAME",
    help="The Secret whose key `token` is a token of `meshray token create --head`.",
)
@pod_options
@click.option(
    "--serve", is_flag=True, help="Pods of the namespace reach Ray Serve (port 8000), for RayService; includes --jobs."
)
@click.option(
    "--serve-config",
    metavar="FILE",
    help="Print a RayService with these Serve applications instead of a RayCluster: YAML as `serve build` writes it. "
    "Includes --serve. Not with --operator-token or --values.",
)
@click.option(
    "--jobs",
    is_flag=True,
    help="The operator and pods of the namespace reach the dashboard without Ray's token, for RayJob and RayService.",
)
@click.option(
    "--operator-token",
    is_flag=True,
    help="As --jobs, with Ray's token: KubeRay (1.5.1 or later) reads it from the Secret with the RayCluster's name, "
    "key auth_token. Not with --values.",
)
@click.option("--values", is_flag=True, help="Print values for KubeRay's chart ray-cluster instead.")
@click.pass_obj
def kuberay_command(
    app: App,
    /,
    *,
    name: str,
    ray_version: str,
    workers: int,
    min_workers: int,
    max_workers: int,
    head_cpu: str,
    head_memory: str,
    head_token_secret: str,
    jobs: bool,
    operator_token: bool,
    serve: bool,
    serve_config: str | None,
    values: bool,
    output: str | None,
    **pods: Any,
) -> FileResult:
    """Print a RayCluster of KubeRay whose pods are nodes of a mesh.

    \b
    Examples:
      meshray render kuberay --image registry.example.org/worker:1 -o raycluster.yaml
      meshray render kuberay --gpus 1 --max-workers 8 --values -o values.yaml
      meshray render kuberay --serve-config serve.yaml -o rayservice.yaml

    Machines outside the cluster join the same mesh with `meshray join TOKEN`. Create the mesh on a machine that all of
    them can reach, with `meshray init --hub-only`. The comments at the top of the file say what to do before
    `kubectl apply`.
    """
    from meshray.render import kubernetes

    cluster = kubernetes.Cluster(
        name=name,
        ray_version=ray_version,
        workers=workers,
        min_workers=min_workers,
        max_workers=max_workers,
        head_cpu=head_cpu,
        head_memory=head_memory,
        head_secret=head_token_secret,
        serve=serve or serve_config is not None,
        serve_config=_serve_config(serve_config),
        with_jobs=jobs,
        operator_token=operator_token,
        **_pod_fields(**pods),
    )
    if values:
        if operator_token:
            raise UsageError(
                "operator_token_with_values",
                "KubeRay's chart has no value for --operator-token",
                hint="--jobs --values",
            )
        if serve_config is not None:
            raise UsageError(
                "serve_config_with_values",
                "KubeRay's chart ray-cluster creates no RayService",
                hint="--serve-config FILE without --values",
            )
        if cluster.proxy:
            app.warn(
                "KubeRay's chart has no NetworkPolicy: every pod that reaches port 8265 of the head controls Ray; "
                "apply the two policies that the same command prints without --values"
            )
        following = f"helm install {name} kuberay/ray-cluster --values {{}}{_in(pods)}"
        return written(app, "kuberay", kubernetes.ray_cluster_values(cluster), output, following)
    return written(app, "kuberay", kubernetes.ray_cluster(cluster), output, "kubectl apply -f {}")


def _serve_config(file: str | None) -> str:
    """Return the text of the file with the Serve applications; empty: no file is given."""
    if file is None:
        return ""
    example = "serve build MODULE:APP -o serve.yaml"
    try:
        text = Path(file).read_text().strip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError("serve_config", f"{file} cannot be read: {reason}", hint=example) from None
    if not text.strip():
        raise UsageError("serve_config", f"{file} is empty", hint=example)
    return text


def _pod_fields(*, object_store: str, drain: str, json_logs: bool, **same: Any) -> dict[str, Any]:
    """Return the fields of `meshray.render.kubernetes.pods.Pods` of the values of `pod_options`."""
    from meshray.render import kubernetes

    return {
        **same,
        "object_store": kubernetes.memory(object_store, "--object-store"),
        "drain_s": parse_duration(drain),
        "log_format": "json" if json_logs else "",
    }


def _in(pods: Mapping[str, Any]) -> str:
    """Return the option of Helm for this namespace: the namespace of a chart's objects is not among its values."""
    return f" --namespace {pods['namespace']}" if pods["namespace"] else ""
