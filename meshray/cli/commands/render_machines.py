"""`meshray render ansible` and `meshray render cloud-init`: machines that become nodes of the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meshray.cli.options import json_option, parse_duration, read_token
from meshray.cli.output_file import output_option, packed, written
from meshray.errors import UsageError
from meshray.model.address import NodeName

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.cli.file_result import FileResult


@click.command("ansible")
@click.option("--role", type=click.Choice(["head", "worker"]), help="Only the play for these machines; default: both.")
@click.option("--collection", is_flag=True, help="Write the collection meshray.mesh instead; needs -o FILE.tgz.")
@output_option
@json_option
@click.pass_obj
def ansible_command(app: App, *, role: str | None, collection: bool, output: str | None) -> FileResult:
    """Print an Ansible playbook that makes the machines of an inventory nodes.

    \b
    Examples:
      meshray render ansible --collection -o mesh.tgz
      meshray render ansible -o site.yml
      ansible-playbook -i hosts.ini site.yml

    The inventory has one machine in the group headnode, and the others in workernode. The playbook needs the collection
    meshray.mesh, which is unpacked once. `meshray node add --from hosts.ini` needs neither Ansible nor the collection.
    """
    from meshray import __version__
    from meshray.render import ansible
    from meshray.render.kubernetes.archive import packed as archive

    if not collection:
        return written(app, "ansible", ansible.playbook(role or ""), output, "ansible-playbook -i hosts.ini {}")
    if role is not None:
        raise UsageError("collection_with_role", "the collection is for both roles", hint="leave out --role")
    following = "mkdir -p ~/.ansible/collections && tar -xzf {} -C ~/.ansible/collections"
    return packed(app, "ansible", archive(ansible.FOLDER, ansible.collection(__version__)), output, following)


@click.command("cloud-init")
@click.argument("token", metavar="[TOKEN|-|@FILE]", nargs=-1)
@click.option(
    "--role",
    type=click.Choice(["head", "worker"]),
    default="worker",
    show_default=True,
    help="head: the machine makes a mesh and needs no token.",
)
@click.option("--name", metavar="NAME", help="The node's name; default: the machine's host name.")
@click.option("--advertise", multiple=True, metavar="HOST", help="With --role head: as of `meshray init`.")
@click.option("--no-ray", is_flag=True, help="Only the overlay; start no Ray.")
@click.option("--ray-arg", multiple=True, metavar="ARG", help="An argument for `ray start`. May be repeated.")
@click.option(
    "--meshray",
    "program",
    default="",
    metavar="PATH",
    help="The path of meshray in the image; default: pip installs it into /opt/meshray.",
)
@click.option(
    "--package",
    default="meshray[ray]",
    show_default=True,
    metavar="PACKAGE",
    help="What pip installs: a pinned version.",
)
@click.option(
    "--wait",
    default="1h",
    show_default=True,
    metavar="TIME",
    help="How long a worker tries again until the head is up.",
)
@click.option(
    "--terraform",
    is_flag=True,
    help="Leave ${token} and ${name} in it, for templatefile of Terraform; no token is needed now.",
)
@output_option
@json_option
@click.pass_obj
def cloud_init_command(
    app: App,
    *,
    token: tuple[str, ...],
    role: str,
    name: str | None,
    advertise: tuple[str, ...],
    no_ray: bool,
    ray_arg: tuple[str, ...],
    program: str,
    package: str,
    wait: str,
    terraform: bool,
    output: str | None,
) -> FileResult:
    """Print user-data with which a cloud's machine becomes a node at its first boot.

    \b
    Examples:
      sudo meshray token create --name gpu-1 | meshray render cloud-init - --name gpu-1 -o gpu-1.yaml
      meshray render cloud-init --role head --advertise head.example.org -o head.yaml
      meshray render cloud-init --terraform -o worker.yaml.tftpl

    User-data with a token is a secret: every program on the machine can read it at the cloud's metadata service. Use
    one token for each machine.
    """
    from meshray.raynode.command import check_extra_args
    from meshray.render.cloud_init import FirstBoot, cloud_init

    head = role == "head"
    check_extra_args(ray_arg)
    _require_sense(head=head, token=token, advertise=advertise, terraform=terraform)
    if no_ray and ray_arg:
        raise UsageError("no_ray_with_ray", "--ray-arg has no effect with --no-ray", hint="leave one of them out")
    options = [
        *(("--no-ray",) if no_ray else ()),
        *(word for host in advertise for word in ("--advertise", host)),
    ]
    boot = FirstBoot(
        head=head,
        token="" if head or terraform else read_token(token, app).encode(),
        name=str(NodeName.parse(name)) if name is not None else "",
        options=tuple(options),
        ray_args=ray_arg,
        program=program,
        package=package,
        patience_s=parse_duration(wait),
        terraform=terraform,
    )
    return written(app, "cloud-init", cloud_init(boot), output, "the user-data of the machine is {}", secret=not head)


def _require_sense(*, head: bool, token: tuple[str, ...], advertise: tuple[str, ...], terraform: bool) -> None:
    if token and (head or terraform):
        other = "--role head" if head else "--terraform"
        raise UsageError("token_not_needed", f"{other} takes no token", hint="leave out one of them")
    if advertise and not head:
        raise UsageError("advertise_needs_head", "--advertise is for the head", hint="--role head --advertise HOST")
