r"""User-data for cloud-init: a machine that becomes a node at its first boot.

>>> text = cloud_init(FirstBoot(head=False, token="meshray1_AbC", name="gpu-1"))
>>> [line.strip() for line in text.splitlines() if "content: \"" in line]
['content: "meshray1_AbC"']
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from meshray.errors import UsageError
from meshray.render.templates import render
from meshray.render.yaml_scalars import quoted

TEMPLATE = "cloud-init/user-data.yaml.j2"
#: What Terraform's templatefile would replace → its literal form.
_TERRAFORM = {"${": "$${", "%{": "%%{"}


@dataclass(frozen=True)
class FirstBoot:
    """What a machine does at its first boot.

    Attributes:
        head: it makes a mesh; else it joins the token's.
        token: of a worker; empty with `terraform`.
        name: the node's name; empty: the machine's own, or Terraform's with `terraform`.
        options: further options of `meshray init` or `meshray join`.
        ray_args: the arguments after ``--``.
        program: the path of meshray in the image; empty: it is installed.
        package: what pip installs.
        patience_s: how long a worker waits for the head, seconds.
        terraform: the text is a template of Terraform with the variables ``token`` and ``name``.
    """

    head: bool
    token: str = ""
    name: str = ""
    options: tuple[str, ...] = ()
    ray_args: tuple[str, ...] = ()
    program: str = ""
    package: str = "meshray[ray]"
    patience_s: int = 3600
    terraform: bool = False


def cloud_init(boot: FirstBoot) -> str:
    """Return the user-data.

    Raises:
        UsageError: ``user_data_value``, if a value contains a line break or another control character.
        MeshrayError: templates_missing.
    """
    name = "${name}" if boot.terraform and not boot.name else boot.name
    rest = [*boot.options, *(("--", *boot.ray_args) if boot.ray_args else ())]
    for text in (name, *rest, boot.program, boot.package):
        if not text.isprintable():
            raise UsageError("user_data_value", f"{text[:80]!r} cannot be part of user-data", hint="leave it out")

    def word(text: str) -> str:
        """Quote for the shell. Terraform replaces its variables inside of the quotes."""
        if boot.terraform and text != "${name}":
            for special, literal in _TERRAFORM.items():
                text = text.replace(special, literal)
        return shlex.quote(text)

    words = [*(("--name", name) if name else ()), *rest]
    token = "${token}" if boot.terraform else boot.token
    values = {**vars(boot), "words": words, "token": token}
    return render(TEMPLATE, values, {"quoted": quoted, "word": word})
