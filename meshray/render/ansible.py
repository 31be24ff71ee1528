"""The Ansible collection meshray.mesh, and a playbook that uses it.

>>> "meshray.mesh.node" in playbook("worker")
True
"""

from __future__ import annotations

from collections.abc import Mapping

from meshray.render.templates import folder, render

#: The folder below a path of Ansible's collections.
FOLDER = "ansible_collections/meshray/mesh"
_TEMPLATES = "ansible"
#: Role of a node → the group of the inventory.
GROUPS = {"head": "headnode", "worker": "workernode"}


def collection(version: str) -> Mapping[str, str]:
    """Return the files of the collection by path, with this version. Raises MeshrayError: templates_missing."""
    root = folder() / _TEMPLATES
    files = {
        str(path.relative_to(root)): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix not in (".pyc", ".j2")
    }
    return {**files, "galaxy.yml": render(f"{_TEMPLATES}/galaxy.yml.j2", {"version": version})}


def playbook(role: str = "") -> str:
    """Return a playbook for the nodes of this role, for all if it is empty. Raises MeshrayError: templates_missing."""
    groups = [group for name, group in GROUPS.items() if role in ("", name)]
    return render(f"{_TEMPLATES}/playbook.yml.j2", {"groups": groups})
