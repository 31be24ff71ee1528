"""The machines of an Ansible inventory and of a cluster file of `ray up`, and what is wrong with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from meshray.cli.machine_list import MachineList, parse_cluster, parse_inventory, parse_list
from meshray.errors import MeshrayError, UsageError
from tests.unit.cli.fakes import FakeAgent, type_in

INVENTORY = """
# The lab
[headnode]
head ansible_host=203.0.113.10

[workernode]
gpu-1 ansible_host=203.0.113.21 ansible_user=ana   # the fast one
gpu-[02:03] ansible_port=2222
203.0.113.40
[2001:db8::7]:2200
node-x.example.org:22 ansible_ssh_private_key_file="~/keys/a b"

[workernode:vars]
ansible_user = bob
ansible_ssh_common_args='-J jump'

[all:vars]
ansible_ssh_private_key_file=lab_key
"""
CLUSTER = """
cluster_name: lab
provider: {type: local, head_ip: 203.0.113.10, worker_ips: [203.0.113.21, gpu-2, 203.0.113.21]}
auth: {ssh_user: ubuntu, ssh_private_key: ~/.ssh/lab.pem}
max_workers: 2
head_start_ray_commands: [ray stop]
"""


def targets(found: MachineList) -> dict[str, str]:
    return {machine.label: str(machine.target) for machine in found.machines}


def codes(found: MachineList) -> dict[str, str]:
    return {label: fault.code for label, fault in found.faults.items()}


def test_an_inventory_as_people_write_it() -> None:
    found = parse_inventory(INVENTORY)
    assert found.heads == ("head",)
    assert targets(found) == {
        "gpu-1": "ssh://ana@203.0.113.21",
        "gpu-02": "ssh://bob@gpu-02:2222",
        "gpu-03": "ssh://bob@gpu-03:2222",
        "203.0.113.40": "ssh://bob@203.0.113.40",
        "2001:db8::7": "ssh://bob@[2001:db8::7]:2200",
        "node-x.example.org": "ssh://bob@node-x.example.org:22",
    }
    assert [machine.name for machine in found.machines] == ["gpu-1", "gpu-02", "gpu-03", "", "", ""]
    assert [machine.target.key for machine in found.machines][::5] == ["lab_key", "~/keys/a b"]
    assert found.faults == {}
    assert found.notes == ("ansible_ssh_common_args is not applied: put them into ~/.ssh/config",)


def test_groups_of_groups_and_inner_variables() -> None:
    found = parse_inventory(
        "[racks:children]\nrack1\n[workers:children]\nracks\n[racks:vars]\nansible_user=outer\nansible_port=1\n"
        "[rack1:vars]\nansible_user=inner\n[rack1]\na-[a:c]\n"
    )
    assert targets(found) == {f"a-{letter}": f"ssh://inner@a-{letter}:1" for letter in "abc"}
    circle = parse_inventory("[workers:children]\na\n[a:children]\nworkers\n[a]\nx\n")
    assert targets(circle) == {"x": "ssh://x"}


def test_what_cannot_be_added_is_named_and_the_others_remain() -> None:
    found = parse_inventory(
        "lonely\n[headnode]\na\nb\n[workernode]\nok\nwin ansible_connection=winrm\nbad ansible_host=-oProxyCommand=x\n"
        "port ansible_port=99999\n[storage]\nnas\n[head]\nboth\n[worker]\nboth\n"
    )
    assert targets(found) == {"ok": "ssh://ok"}
    assert codes(found) == {
        "lonely": "group_unknown",
        "nas": "group_unknown",
        "win": "not_by_ssh",
        "bad": "bad_machine",
        "port": "bad_machine",
        "both": "two_roles",
        "a": "two_heads",
        "b": "two_heads",
    }
    assert "only in storage" in found.faults["nas"].message
    assert found.heads == ()


def test_chosen_groups_hide_the_others() -> None:
    found = parse_inventory("[headnode]\nh\n[gpus]\ng1\n[storage]\nnas\n", groups=["gpus"])
    assert (targets(found), codes(found), found.heads) == ({"g1": "ssh://g1"}, {}, ("h",))


@pytest.mark.parametrize(
    "line",
    ["[a:things]", "gpu 'open", "[w]\ng[3:x]", "[w]\ng[1:5:0]", "[w]\ng[1:99999]", "[w:vars]\nnothing", "g x=1 y"],
)
def test_a_line_that_ansible_rejects_is_named(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_inventory(line)
    assert caught.value.code == "bad_inventory"
    assert f"line {len(line.splitlines())}" in caught.value.message


def test_a_cluster_file_of_ray_up() -> None:
    found = parse_cluster(CLUSTER)
    assert found.heads == ("203.0.113.10",)
    assert targets(found) == {"203.0.113.21": "ssh://ubuntu@203.0.113.21", "gpu-2": "ssh://ubuntu@gpu-2"}
    assert {machine.target.key for machine in found.machines} == {"~/.ssh/lab.pem"}
    assert [machine.name for machine in found.machines] == ["", "gpu-2"]
    head_twice = parse_cluster(CLUSTER.replace("gpu-2", "203.0.113.10"))
    assert (codes(head_twice), head_twice.heads) == ({"203.0.113.10": "two_roles"}, ())


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("provider: {type: aws}", "its provider is 'aws'"),
        ("provider: {type: local}", "no provider with worker_ips"),
        ("provider: {type: local, worker_ips: 3}", "worker_ips is not a list"),
        ("provider: {type: local, worker_ips: [3]}", "contains '3', which is not a text"),
        ("provider: {worker_ips: [a]}\nauth: [x]", "auth is not a mapping"),
        ("- a", "not a mapping"),
        ("a: [", "not YAML"),
        ("a: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_another_yaml_is_refused_with_the_cause(text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        parse_cluster(text)
    assert caught.value.code == "bad_cluster_file"


def test_without_pyyaml_an_inventory_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MeshrayError) as caught:
        parse_list("cluster.yaml", CLUSTER)
    assert caught.value.code == "no_yaml"
    assert parse_list("hosts", "[worker]\na\n").machines


def test_a_relative_key_starts_at_the_current_folder() -> None:
    found = parse_list("hosts.ini", INVENTORY, folder=Path("/home/ana/lab"))
    assert found.machines[0].target.key == "/home/ana/lab/lab_key"
    assert found.machines[0].target.argv()[-4:] == ["-i", "/home/ana/lab/lab_key", "--", "203.0.113.21"]
    assert found.machines[-1].target.command_line == "ssh -p 22 -i '~/keys/a b' bob@node-x.example.org"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "no_machine"),
        (("ssh://a", "--from", "F"), "list_with_one"),
        (("--from", "F", "--name", "a"), "list_with_one"),
        (("ssh://a", "--group", "g"), "group_without_list"),
        (("--from", "/no/such"), "file_unreadable"),
        (("--from", "F"), "no_machines"),
    ],
)
def test_a_contradiction_is_refused_before_anything_happens(words: tuple[str, ...], code: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts.ini"
    file.write_text("[headnode]\nhead\n")
    agent = FakeAgent()
    outcome = type_in("node", "add", "--json", *(str(file) if word == "F" else word for word in words), agent=agent)
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (2, code)
    assert agent.asked == []


def test_without_an_agent_there_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "hosts.ini"
    file.write_text("[worker]\na\nb\n")
    outcome = type_in("node", "add", "--json", "--from", str(file))
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (5, "agent_down")
