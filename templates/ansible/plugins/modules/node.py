#!/usr/bin/python
"""The Ansible module meshray.mesh.node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node
short_description: Make a machine a node of a meshray mesh
description:
  - Runs C(meshray init), C(meshray join), C(meshray up) or C(meshray leave), whichever leads to the wanted state.
  - It does not change the options of a node that exists.
options:
  state:
    description: C(query) changes nothing and only returns what is there.
    choices: [present, absent, query]
    default: present
    type: str
  role:
    description: C(head) makes a mesh, and C(worker) joins that of the token.
    choices: [head, worker]
    default: worker
    type: str
  name:
    description: The name of the node; the machine's own by default.
    type: str
  token:
    description: The token of a worker. It is not needed on a machine that is a node already.
    type: str
  options:
    description: Further options of C(meshray init) or C(meshray join), one word per item.
    type: list
    elements: str
    default: []
  ray_args:
    description: Options of C(ray start).
    type: list
    elements: str
    default: []
  program:
    description: The name or path of meshray.
    type: str
    default: meshray
author: The meshray maintainers (@meshray)
attributes:
  check_mode:
    support: full
    description: Reports what would change.
  diff_mode:
    support: full
    description: Shows the state before and after.
"""

EXAMPLES = r"""
- name: Make a mesh
  meshray.mesh.node:
    role: head

- name: Join it
  meshray.mesh.node:
    token: "{{ created.token }}"
"""

RETURN = r"""
enrolled:
  description: Whether the machine is a node of a mesh now.
  type: bool
  returned: always
up:
  description: Whether the agent of the node runs now.
  type: bool
  returned: always
mesh:
  description: The name of the mesh, if the node is up.
  type: str
  returned: always
node:
  description: The name and the overlay address of the node, if it is up.
  type: dict
  returned: always
"""

import json
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

#: The exit codes of `meshray status`: fine, and works but unhealthy.
UP = (0, 3)
STATE = "/var/lib/meshray"


def answer_of(module, words, stdin=None):
    """Return the exit code and the JSON answer of a meshray command."""
    code, out, err = module.run_command([module.params["program"], *words], data=stdin)
    try:
        return code, json.loads(out)
    except ValueError:
        module.fail_json(msg="meshray " + words[0] + " printed no JSON: " + (err.strip() or out.strip()), rc=code)


def require(module, words, stdin=None):
    """Return the JSON answer of a command that must succeed."""
    code, answer = answer_of(module, words, stdin)
    if code != 0:
        error = answer.get("error", {})
        module.fail_json(msg=error.get("message", ""), code=error.get("code", ""), hint=error.get("hint", ""), rc=code)
    return answer


def find(module):
    """Return what is there: enrolled, up, mesh, node."""
    home = os.environ.get("MESHRAY_HOME") or STATE
    enrolled = (Path(home) / "node.json").exists()
    code, answer = answer_of(module, ["status", "--json"])
    if code in UP:
        own = answer["self"]
        nodes = [node for node in answer["nodes"] if node["name"] == own] or [{"ip": ""}]
        return {"enrolled": True, "up": True, "mesh": answer["mesh"], "node": {"name": own, "ip": nodes[0]["ip"]}}
    return {"enrolled": enrolled, "up": False, "mesh": "", "node": {}}


def command(params, found):
    """Return the words of the command that leads to the wanted state, without --json; empty if nothing is to do."""
    if params["state"] == "query" or (params["state"] == "absent" and not found["enrolled"]):
        return []
    if params["state"] == "absent":
        return ["leave", "--yes"]
    if found["up"]:
        return []
    if found["enrolled"]:
        return ["up"]
    name = ["--name", params["name"]] if params["name"] else []
    ray = ["--", *params["ray_args"]] if params["ray_args"] else []
    verb = ["init"] if params["role"] == "head" else ["join", "-"]
    return [*verb, "--json", *name, *params["options"], *ray]


def text(found):
    """Return the state as lines for a diff."""
    state = "up" if found["up"] else "down" if found["enrolled"] else "absent"
    return "state: " + state + "\n"


def main():
    """Bring the node into its state."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "query"], "default": "present"},
            "role": {"type": "str", "choices": ["head", "worker"], "default": "worker"},
            "name": {"type": "str"},
            "token": {"type": "str", "no_log": True},
            "options": {"type": "list", "elements": "str", "default": []},
            "ray_args": {"type": "list", "elements": "str", "default": []},
            "program": {"type": "str", "default": "meshray"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not Path(params["program"]).is_absolute():
        params["program"] = module.get_bin_path(params["program"], not module.check_mode)
    installed = params["program"] and Path(params["program"]).exists()
    # In check mode meshray may not be installed yet.
    absent = {"enrolled": False, "up": False, "mesh": "", "node": {}}
    before = find(module) if installed or not module.check_mode else absent
    words = command(params, before)
    after = dict(before)
    if words:
        gone = params["state"] == "absent"
        after = {**before, "enrolled": not gone, "up": not gone}
        if not module.check_mode:
            if words[0] == "join" and not params["token"]:
                module.fail_json(msg="this machine is not a node, and no token was given")
            stdin = params["token"] if words[0] == "join" else None
            require(module, words if "--json" in words else [*words, "--json"], stdin)
            after = find(module)
    diff = {"before": text(before), "after": text(after)}
    module.exit_json(changed=bool(words), diff=diff, **after)


if __name__ == "__main__":
    main()
