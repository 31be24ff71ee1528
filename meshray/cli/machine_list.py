r"""The machines in a file that people already have: an Ansible inventory, or the cluster file of `ray up`. Pure.

>>> found = parse_inventory("[headnode]\nhead\n[workernode]\ngpu-[1:2] ansible_user=ana\n")
>>> found.heads, [str(machine.target) for machine in found.machines]
(('head',), ['ssh://ana@gpu-1', 'ssh://ana@gpu-2'])
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshray.errors import MeshrayError, UsageError
from meshray.model.address import NodeName
from meshray.runtime.ssh import SshTarget

#: The usual names of Ansible's groups.
HEAD_GROUPS = ("headnode", "headnodes", "head", "ray_head")
WORKER_GROUPS = ("workernode", "workernodes", "worker", "workers", "ray_worker", "ray_workers")
#: More machines than a mesh can have nodes.
_MOST = 10_000
_SECTION = re.compile(r"\[([^\]:]+)(?::(\w+))?\]")
_RANGE = re.compile(r"\[(\w+):(\w+)(?::(\d+))?\]", re.ASCII)
_PORT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]*::[0-9A-Fa-f:.]*)\]|(?P<v4>.+)):(?P<port>[0-9]{1,5})", re.ASCII)
#: Ansible's variables for ssh, the older names included → what they are here.
_VARIABLES = {
    "ansible_host": "host",
    "ansible_ssh_host": "host",
    "ansible_user": "user",
    "ansible_ssh_user": "user",
    "ansible_port": "port",
    "ansible_ssh_port": "port",
    "ansible_ssh_private_key_file": "key",
    "ansible_private_key_file": "key",
}
#: Variables that change how Ansible connects, and that cannot be applied here → what to do instead.
_NOT_APPLIED = {
    "ansible_ssh_common_args": "put them into ~/.ssh/config",
    "ansible_ssh_extra_args": "put them into ~/.ssh/config",
    "ansible_ssh_pass": "use a key",
    "ansible_password": "use a key",
    "ansible_become_pass": "allow sudo without a password there",
    "ansible_become_password": "allow sudo without a password there",
}


@dataclass(frozen=True)
class Machine:
    """A machine to add.

    Attributes:
        label: its name in the file.
        name: the name of its node; empty: its own host name.
    """

    label: str
    target: SshTarget
    name: str = ""


@dataclass(frozen=True)
class MachineList:
    """What a file says.

    Attributes:
        heads: the labels of the head, which is not added.
        machines: the machines to add, in the file's order.
        faults: by label, why a machine cannot be added.
        notes: settings of the file that are not applied.
    """

    heads: tuple[str, ...]
    machines: tuple[Machine, ...]
    faults: Mapping[str, MeshrayError] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def parse_list(name: str, text: str, *, groups: Collection[str] = (), folder: Path = Path()) -> MachineList:
    """Parse a file, which is a cluster file if its name ends with .yaml or .yml.

    Args:
        groups: the groups of an inventory whose machines to add; empty: those that people usually call so.
        folder: the folder from which a relative path of a key starts.

    Raises:
        UsageError: the file cannot be read as either, or names no machine to add.
    """
    is_cluster = name.endswith((".yaml", ".yml"))
    found = parse_cluster(text) if is_cluster else parse_inventory(text, groups=groups)
    if not found.machines and not found.faults:
        raise UsageError("no_machines", f"{name} lists no machine to add", hint=_expected(groups))
    if len(found.machines) > _MOST:
        raise UsageError("too_many_machines", f"{name} lists more than {_MOST} machines", hint="split the file")
    return replace(found, machines=tuple(_with_key(machine, folder) for machine in found.machines))


def _expected(groups: Collection[str]) -> str:
    wanted = f"[{']  ['.join(groups)}]" if groups else f"[{WORKER_GROUPS[0]}]"
    return f"machines are expected under {wanted} in an inventory, or under worker_ips in a cluster file"


def _with_key(machine: Machine, folder: Path) -> Machine:
    key = machine.target.key
    if not key or key.startswith(("~", "/")):  # ssh itself expands ~, as the user.
        return machine
    return replace(machine, target=replace(machine.target, key=str(folder.absolute() / key)))


# ---- Ansible's inventories


@dataclass
class _Inventory:
    """The parsed lines: hosts and their variables, and groups with their members, children and variables."""

    hosts: dict[str, dict[str, str]] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    children: dict[str, list[str]] = field(default_factory=dict)
    variables: dict[str, dict[str, str]] = field(default_factory=dict)

    def groups_of(self, host: str) -> list[str]:
        """Return the host's groups, outer ones first, without ``all``."""
        direct = [group for group, members in self.members.items() if host in members]
        ordered: list[str] = []
        pending = list(direct)
        while pending:
            group = pending.pop(0)
            if group not in ordered:  # A group may be in a circle of children.
                ordered.append(group)
                pending += [outer for outer, inner in self.children.items() if group in inner]
        return ordered[::-1]

    def variables_of(self, host: str) -> dict[str, str]:
        """Return the host's variables; those of inner groups and its own win."""
        found = dict(self.variables.get("all", {}))
        for group in self.groups_of(host):
            found |= self.variables.get(group, {})
        return found | self.hosts[host]


def parse_inventory(text: str, *, groups: Collection[str] = ()) -> MachineList:
    """Parse an inventory of Ansible in its INI form.

    Args:
        groups: the groups to add; then machines of other groups are not mentioned.

    Raises:
        UsageError: ``bad_inventory``, with the line.
    """
    inventory = _read_inventory(text)
    workers = tuple(groups) or WORKER_GROUPS
    heads: list[str] = []
    machines: list[Machine] = []
    faults: dict[str, MeshrayError] = {}
    notes: dict[str, None] = {}
    for host in inventory.hosts:
        of_host = inventory.groups_of(host)
        is_head, is_worker = bool({*of_host} & {*HEAD_GROUPS}), bool({*of_host} & {*workers})
        if is_head and is_worker:
            faults[host] = UsageError(
                "two_roles", f"{host} is listed as a head and as a worker", hint="keep it in one of the two groups"
            )
        elif is_head:
            heads.append(host)
        elif is_worker:
            variables = inventory.variables_of(host)
            notes |= dict.fromkeys(
                f"{name} is not applied: {_NOT_APPLIED[name]}" for name in variables if name in _NOT_APPLIED
            )
            try:
                machines.append(_machine(host, variables))
            except MeshrayError as fault:
                faults[host] = fault
        elif not groups:
            where = f"only in {', '.join(of_host)}" if of_host else "in no group"
            faults[host] = UsageError(
                "group_unknown",
                f"{host} is {where}, which is neither a group of the head nor of workers",
                hint=f"list it under [{WORKER_GROUPS[0]}], or name the groups to add: --group NAME",
            )
    return _checked(heads, machines, faults, tuple(notes))


def _checked(
    heads: list[str], machines: list[Machine], faults: dict[str, MeshrayError], notes: tuple[str, ...] = ()
) -> MachineList:
    """Report a second head: none of them is touched, and the workers join the mesh of this machine."""
    if len(heads) > 1:
        for head in heads:
            faults[head] = UsageError(
                "two_heads",
                f"{' and '.join(heads)} are listed as heads, and a mesh has one",
                hint="keep the machine on which this command runs, and list the others as workers",
            )
        heads = []
    return MachineList(tuple(heads), tuple(machines), faults, notes)


def _read_inventory(text: str) -> _Inventory:
    inventory, group, kind = _Inventory(), "ungrouped", "hosts"
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", ";")):
            continue
        section = _SECTION.fullmatch(stripped.partition(" #")[0].rstrip())
        if section is not None:
            group, kind = section[1].strip(), section[2] or "hosts"
            if kind not in ("hosts", "children", "vars"):
                raise _bad_line(number, stripped)
            continue
        try:
            _read_line(inventory, group, kind, stripped)
        except ValueError:
            raise _bad_line(number, stripped) from None
    return inventory


def _bad_line(number: int, line: str) -> UsageError:
    return UsageError(
        "bad_inventory",
        f"line {number} is not valid in an inventory of Ansible: {line[:80]!r}",
        hint="ansible-inventory --list shows how Ansible reads it; YAML needs the ending .yaml",
    )


def _read_line(inventory: _Inventory, group: str, kind: str, line: str) -> None:
    if kind == "vars":
        name, equals, value = line.partition("=")
        if not equals:
            raise ValueError
        (value,) = shlex.split(value, comments=True) or [""]
        inventory.variables.setdefault(group, {})[name.strip()] = value
        return
    words = shlex.split(line, comments=True)
    if kind == "children":
        (child,) = words
        inventory.children.setdefault(group, []).append(child)
        return
    pattern, *settings = words
    if any("=" not in word for word in settings):
        raise ValueError
    variables = {name: value for name, _, value in (word.partition("=") for word in settings)}
    for host, more in _expanded(pattern):
        inventory.hosts.setdefault(host, {}).update({**more, **variables})
        if group != "ungrouped":
            inventory.members.setdefault(group, []).append(host)


def _expanded(pattern: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each host of a pattern as ``gpu-[01:12]:2222``, and the port as a variable."""
    more: dict[str, str] = {}
    with_port = _PORT.fullmatch(pattern)
    if with_port is not None and ":" not in _RANGE.sub("", with_port["v4"] or ""):
        pattern, more = with_port["v4"] or with_port["v6"], {"ansible_port": with_port["port"]}
    for count, host in enumerate(_ranges(pattern)):
        if count > _MOST:
            raise ValueError
        yield host, more


def _ranges(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    for item in _items(found[1], found[2], int(found[3] or 1)):
        yield from _ranges(pattern[: found.start()] + item + pattern[found.end() :])


def _items(first: str, last: str, step: int) -> Iterable[str]:
    if step < 1:
        raise ValueError
    if first.isdecimal() and last.isdecimal():
        width = len(first) if first.startswith("0") else 0
        return (str(number).zfill(width) for number in range(int(first), int(last) + 1, step))
    if len(first) == len(last) == 1 and first.isalpha() and last.isalpha():
        return (chr(number) for number in range(ord(first), ord(last) + 1, step))
    raise ValueError


def _machine(host: str, variables: Mapping[str, str]) -> Machine:
    """Return the machine that Ansible would connect to. Raises UsageError."""
    found = {_VARIABLES[name]: value for name, value in variables.items() if name in _VARIABLES and value}
    if variables.get("ansible_connection", "ssh") not in ("ssh", "smart", "paramiko"):
        raise UsageError(
            "not_by_ssh",
            f"{host} is not reached by ssh: ansible_connection={variables['ansible_connection']}",
            hint="meshray token create --line, and run that command there",
        )
    return Machine(host, _target(host, **{"host": host, **found}), _node_name(host))


def _target(label: str, host: str, user: str = "", port: str = "", key: str = "") -> SshTarget:
    address = f"[{host}]" if ":" in host else host
    try:
        target = SshTarget.parse(f"ssh://{f'{user}@' if user else ''}{address}{f':{port}' if port else ''}")
    except UsageError as error:
        raise UsageError("bad_machine", f"{label}: {error.message}", hint="check its address, user and port") from None
    return replace(target, key=key)


def _node_name(label: str) -> str:
    """Return the label if it can be a node's name; else empty, as for an address."""
    try:
        return str(NodeName.parse(label))
    except UsageError:
        return ""


# ---- The cluster files of `ray up`


def parse_cluster(text: str) -> MachineList:
    """Parse a cluster file of `ray up` whose provider is local.

    Raises:
        UsageError: ``bad_cluster_file``.
        MeshrayError: ``no_yaml``.
    """
    content = _load_yaml(text)
    provider = content.get("provider")
    if not isinstance(provider, dict) or "worker_ips" not in provider:
        if isinstance(provider, dict) and provider.get("type") != "local":
            raise _bad_cluster(
                f"its provider is {str(provider.get('type'))[:40]!r}, and its machines are made by `ray up`"
            )
        raise _bad_cluster("it has no provider with worker_ips")
    auth = content.get("auth") or {}
    if not isinstance(auth, dict):
        raise _bad_cluster("auth is not a mapping")
    user, key = (_text(auth.get(name) or "", f"auth.{name}") for name in ("ssh_user", "ssh_private_key"))
    notes = (
        ("auth.ssh_proxy_command is not applied: put it into ~/.ssh/config",) if auth.get("ssh_proxy_command") else ()
    )
    head = _text(provider.get("head_ip") or "", "provider.head_ip")
    workers = provider["worker_ips"] or []
    if not isinstance(workers, list):
        raise _bad_cluster("provider.worker_ips is not a list")
    machines: list[Machine] = []
    faults: dict[str, MeshrayError] = {}
    for worker in dict.fromkeys(_text(item, "provider.worker_ips") for item in workers):
        if worker == head:
            faults[worker] = UsageError(
                "two_roles", f"{worker} is both head_ip and in worker_ips", hint="remove it from one of them"
            )
            continue
        try:
            machines.append(Machine(worker, _target(worker, worker, user, key=key), _node_name(worker)))
        except UsageError as fault:
            faults[worker] = fault
    return _checked([head] if head and head not in faults else [], machines, faults, notes)


def _load_yaml(text: str) -> Mapping[str, object]:
    try:
        import yaml
    except ImportError:
        raise MeshrayError(
            "no_yaml",
            "PyYAML, which reads cluster files, is not installed with this meshray",
            hint="pip install pyyaml, or list the machines in an inventory: hosts.ini",
        ) from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _bad_cluster(f"it is not YAML: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise _bad_cluster("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise _bad_cluster("it is not a mapping")
    return content


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _bad_cluster(f"{where} contains {str(value)[:40]!r}, which is not a text")
    return value


def _bad_cluster(cause: str) -> UsageError:
    return UsageError(
        "bad_cluster_file",
        f"this is not a cluster file of `ray up` for machines that exist: {cause}",
        hint="provider: {type: local, head_ip: …, worker_ips: […]}; an inventory of Ansible ends with .ini",
    )
