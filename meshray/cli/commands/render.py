"""`meshray render …`: print configuration files for other programs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from meshray.cli.app import App
from meshray.cli.commands import render_kubernetes, render_machines, render_monitoring
from meshray.cli.file_result import FileResult
from meshray.cli.options import group, json_option
from meshray.cli.output_file import output_option, written
from meshray.protocol.answers import FileText


@group("render")
def render_command() -> None:
    """Print a configuration file."""


render_command.add_command(render_monitoring.prometheus_command)
render_command.add_command(render_monitoring.alerts_command)
render_command.add_command(render_monitoring.grafana_command)
render_command.add_command(render_kubernetes.kubernetes_command)
render_command.add_command(render_kubernetes.kuberay_command)
render_command.add_command(render_machines.ansible_command)
render_command.add_command(render_machines.cloud_init_command)


@render_command.command("wireguard")
@click.argument("node")
@click.option("--secrets", is_flag=True, help="Include the private key; only for this node itself, as root.")
@json_option
@click.pass_obj
def wireguard(app: App, node: str, secrets: bool) -> FileResult:
    """Print a node's tunnel as a wg-quick file.

    \b
    Example:
      meshray render wireguard gpu-2
    """
    from meshray.protocol.control import GetWireGuard, GetWireGuardSecrets

    answer = app.control().request(GetWireGuardSecrets(node) if secrets else GetWireGuard(node))
    return FileResult(FileText("wireguard", answer.text))


@render_command.command("systemd")
@json_option
@click.pass_obj
def systemd(app: App) -> FileResult:
    """Print the unit under which systemd runs this node's agent.

    \b
    Example:
      meshray render systemd > /etc/systemd/system/meshray.service
    """
    from meshray.runtime.agent_service import unit_text

    return FileResult(FileText("systemd", unit_text(app.own_home, app.environ)))


@render_command.command("slurm")
@click.option("--nodes", type=click.IntRange(1, 100_000), default=2, show_default=True, help="How many compute nodes.")
@click.option(
    "--time",
    default="1:00:00",
    show_default=True,
    metavar="TIME",
    help="The time limit, in sbatch's format: 2-12:00:00.",
)
@click.option("--partition", default="", metavar="NAME", help="The partition, by its name in SLURM.")
@click.option("--gpus-per-node", type=click.IntRange(0, 1024), default=0, metavar="N", help="GPUs of each node.")
@click.option(
    "--token-file",
    default="meshray.token",
    show_default=True,
    metavar="PATH",
    help="The file with the token, visible to all compute nodes; a relative path starts at the directory in "
    "which sbatch is run.",
)
@click.option("--head", is_flag=True, help="The Ray head is in the job, on its first node; no token is needed.")
@click.option(
    "--ray-arg", multiple=True, metavar="ARG", help="An argument for `ray start` on every node. May be repeated."
)
@click.option(
    "--sbatch", multiple=True, metavar="OPTION", help="Any other option of sbatch: --sbatch=--mem=64G. May be repeated."
)
@output_option
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
@json_option
@click.pass_obj
def slurm(
    app: App,
    *,
    nodes: int,
    time: str,
    partition: str,
    gpus_per_node: int,
    token_file: str,
    head: bool,
    ray_arg: tuple[str, ...],
    sbatch: tuple[str, ...],
    output: str | None,
    command: tuple[str, ...],
) -> FileResult:
    """Print an sbatch script that joins SLURM's nodes to a mesh.

    \b
    Examples:
      meshray render slurm --nodes 4 --time 8:00:00 --gpus-per-node 2 -- python train.py > job.sh
      meshray render slurm --head --nodes 4 -o job.sh -- python train.py
      sbatch job.sh

    Each node joins as you and without root, and leaves when the command has ended or the time is up. Without a
    command the nodes stay until then. COMMAND runs on the first node, as with `meshray run --`.
    """
    from meshray.raynode.command import check_extra_args
    from meshray.render import Job, slurm_job

    check_extra_args(ray_arg)  # The token is read now, and not when the job starts after waiting in the queue.
    job = Job(
        nodes=nodes,
        time=time,
        partition=partition,
        gpus_per_node=gpus_per_node,
        token_file=token_file,
        head=head,
        command=command,
        ray_args=ray_arg,
        sbatch=sbatch,
    )
    script = slurm_job(job, Path(sys.executable).with_name("meshray"))
    return written(app, "slurm", script, output, "sbatch {}")
