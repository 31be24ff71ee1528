"""Topology files of containerlab, read as containerlab reads them, as far as the files in this folder need it.

The runner refuses what it would deploy in another way than containerlab.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: containerlab's own, bytes.
DEFAULT_MTU = 9500
_LISTS = ("binds", "cap-add", "devices", "exec")
_MAPS = ("env", "sysctls")
_WORDS = ("cmd", "entrypoint", "image", "kind", "network-mode", "privileged", "restart-policy", "shm-size")
#: What these must be: the runner creates no management network, and gives a container no more rights than it names.
_FIXED = {"kind": "linux", "network-mode": "none", "privileged": False, "restart-policy": "no"}


class UnsupportedError(ValueError):
    """The file needs containerlab itself."""


@dataclass(frozen=True)
class Node:
    """A container.

    Attributes:
        container: its name in the engine.
        binds: each HOST:CONTAINER[:MODE], with an absolute path on the host.
        exec: the commands that run in the container once its links are connected.
    """

    name: str
    container: str
    image: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: Mapping[str, str]
    binds: tuple[str, ...]
    sysctls: Mapping[str, str]
    cap_add: tuple[str, ...]
    devices: tuple[str, ...]
    shm_size: str
    exec: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class End:
    """One end of a link: an interface of a node."""

    node: str
    interface: str


@dataclass(frozen=True)
class Link:
    """A pair of connected interfaces. The MTU is in bytes."""

    ends: tuple[End, End]
    mtu: int


@dataclass(frozen=True)
class Topology:
    """A file. The nodes are by name, in the order of the file."""

    name: str
    nodes: Mapping[str, Node]
    links: tuple[Link, ...]


def read(path: Path) -> Topology:
    """Return the topology in this file.

    Raises:
        UnsupportedError: the file is not a topology, or needs containerlab itself.
    """
    text = path.read_text()
    if "$" in text:
        raise UnsupportedError(f"{path}: containerlab would replace a variable; write the value itself")
    content = yaml.safe_load(text)
    _check_keys(f"{path}", content, {"name", "topology"})
    body = content["topology"]
    _check_keys(f"{path}: topology", body, {"defaults", "nodes", "links"})
    defaults = body.get("defaults") or {}
    nodes = {
        name: _node(f"{path}: node {name}", f"clab-{content['name']}-{name}", name, defaults, own or {}, path.parent)
        for name, own in body["nodes"].items()
    }
    links = tuple(_link(f"{path}: link {number}", entry) for number, entry in enumerate(body.get("links") or (), 1))
    used: set[End] = set()
    for link in links:
        for end in link.ends:
            if end.node not in nodes or end in used:
                problem = "is used twice" if end in used else "is at a node that does not exist"
                raise UnsupportedError(f"{path}: {end.node}:{end.interface} {problem}")
            used.add(end)
    return Topology(content["name"], nodes, links)


def _node(where: str, container: str, name: str, defaults: Any, own: Any, folder: Path) -> Node:
    for part in (defaults, own):
        _check_keys(where, part, {*_LISTS, *_MAPS, *_WORDS})
    merged: dict[str, Any] = {**defaults, **own}
    for key, needed in _FIXED.items():
        if merged.get(key) != needed:
            raise UnsupportedError(f"{where}: {key} is {merged.get(key)!r}; without containerlab it must be {needed!r}")
    lists = {key: tuple(dict.fromkeys((*defaults.get(key, ()), *own.get(key, ())))) for key in _LISTS}
    maps = {
        key: {name: str(value) for name, value in {**defaults.get(key, {}), **own.get(key, {})}.items()}
        for key in _MAPS
    }
    return Node(
        name=name,
        container=container,
        image=merged["image"],
        entrypoint=tuple(shlex.split(merged.get("entrypoint", ""))),
        cmd=tuple(shlex.split(merged.get("cmd", ""))),
        env=maps["env"],
        binds=tuple(_bind(where, bind, folder) for bind in lists["binds"]),
        sysctls=maps["sysctls"],
        cap_add=lists["cap-add"],
        devices=lists["devices"],
        shm_size=merged.get("shm-size", ""),
        exec=tuple(tuple(shlex.split(command)) for command in lists["exec"]),
    )


def _bind(where: str, bind: str, folder: Path) -> str:
    host, _, rest = bind.partition(":")
    # Docker would create a missing source as an empty folder; containerlab refuses it, too.
    source = (folder / host).resolve()
    if not rest or not source.exists():
        raise UnsupportedError(f"{where}: {bind}: {source} does not exist, or is not mounted anywhere")
    return f"{source}:{rest}"


def _link(where: str, entry: Any) -> Link:
    _check_keys(where, entry, {"endpoints", "mtu"})
    ends = [End(*text.split(":")) for text in entry["endpoints"]]
    return Link((ends[0], ends[1]), entry.get("mtu", DEFAULT_MTU))


def _check_keys(where: str, found: Any, known: set[str]) -> None:
    if not isinstance(found, dict):
        raise UnsupportedError(f"{where}: not a mapping")
    if other := sorted(set(found) - known):
        raise UnsupportedError(f"{where}: {', '.join(other)}: deploy this file with containerlab itself")
