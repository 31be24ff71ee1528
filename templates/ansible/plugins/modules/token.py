#!/usr/bin/python
"""The Ansible module meshray.mesh.token."""

from __future__ import annotations

DOCUMENTATION = r"""
module: token
short_description: Create a token for one machine on the head of a meshray mesh
description:
  - Runs C(meshray token create) for a node with this name.
  - Every call creates a token, so it belongs behind a condition.
options:
  name:
    description: The name of the node that joins with the token.
    required: true
    type: str
  replace:
    description:
      - Whether the machine replaces the node that has the name now, and gets its name and address.
      - C(offline) replaces only a node that is not connected.
    choices: [never, offline, always]
    default: offline
    type: str
  ttl:
    description: How long the token is valid.
    default: 1h
    type: str
  program:
    description: The name or path of meshray.
    type: str
    default: meshray
author: The meshray maintainers (@meshray)
attributes:
  check_mode:
    support: full
    description: Creates no token, and returns an empty one.
  diff_mode:
    support: none
    description: A token is a secret.
"""

EXAMPLES = r"""
- name: Create a token for a machine
  meshray.mesh.token:
    name: gpu-1
  delegate_to: head
  register: created
  no_log: true
"""

RETURN = r"""
token:
  description: The token, a secret.
  type: str
  returned: always
replaces:
  description: Whether the machine replaces a node.
  type: bool
  returned: always
"""

import json

from ansible.module_utils.basic import AnsibleModule


def answer_of(module, words):
    """Return the JSON answer of a meshray command that must succeed."""
    code, out, err = module.run_command([module.params["program"], *words, "--json"])
    try:
        answer = json.loads(out)
    except ValueError:
        module.fail_json(msg="meshray printed no JSON: " + (err.strip() or out.strip()), rc=code)
    if code != 0:
        error = answer.get("error", {})
        module.fail_json(msg=error.get("message", ""), code=error.get("code", ""), hint=error.get("hint", ""), rc=code)
    return answer


def main():
    """Create the token."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "replace": {"type": "str", "choices": ["never", "offline", "always"], "default": "offline"},
            "ttl": {"type": "str", "default": "1h"},
            "program": {"type": "str", "default": "meshray"},
        },
        supports_check_mode=True,
    )
    name, replace = module.params["name"], module.params["replace"]
    if module.check_mode:
        module.exit_json(changed=True, token="", replaces=False)
    nodes = [node for node in answer_of(module, ["node", "list"])["nodes"] if node["name"] == name.lower()]
    if nodes and nodes[0]["online"] and replace == "offline":
        module.fail_json(
            msg="another machine is the node " + name + ", and it is online", hint="another name, or replace: always"
        )
    replaces = bool(nodes) and replace != "never"
    words = ["token", "create", "--name", name, "--ttl", module.params["ttl"], *(["--replace"] if replaces else [])]
    module.exit_json(changed=True, token=answer_of(module, words)["token"], replaces=replaces)


if __name__ == "__main__":
    main()
