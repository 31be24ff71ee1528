"""Find the commands in a text for users that would harm the machine: every fix and hint must satisfy this rule.

    harms("ip route del 0.0.0.0/0 dev eth0", overlay)
    ['ip route del 0.0.0.0/0: not a route of the overlay', …]

A command must not delete or replace anything that is wider than the overlay, or that meshray did not create: routes
must be in the overlay and lead to its interface; interfaces and tables must be meshray's own. The rule is strict: an
unknown command that deletes something is harmful.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Network

INTERFACE = "meshray0"
#: The words before the destination of a route.
_KINDS = {
    "blackhole",
    "unreachable",
    "prohibit",
    "throw",
    "unicast",
    "local",
    "broadcast",
    "root",
    "exact",
    "match",
    "to",
}
_DELETES = {"del", "delete", "d", "flush", "f"}
_REPLACES = {"replace", "change", "chg", "r", "append", "prepend", "add", "a"}
#: Programs whose words delete, stop or weaken something of others', whatever follows.
_NEVER = re.compile(
    r"""\b(
        (docker|podman)\ (network|volume|image|container|system)\ (rm|remove|prune)
        | (docker|podman)\ (kill|stop)
        | systemctl\ (stop|disable|mask|kill|restart|reload)
        | (nmcli)\ .*\b(delete|down|disconnect|off)\b
        | networkctl\ (down|delete)
        | wg-quick\ down | wg\ set\ \S+\ .*remove | tailscale\ (down|logout|set|up) | zerotier-cli\ leave
        | ufw\ (disable|reset|delete) | firewall-cmd\ .*--(remove|delete|complete-reload|panic)
        | (ip6?tables|ebtables)\S*\ .*(-D|-F|-X|-Z|-P|--delete|--flush|--policy)\b
        | nft\ flush\ ruleset
        | ipset\ (destroy|flush|del) | conntrack\ (-F|-D) | bridge\ .*\bdel | tc\ .*\bdel
        | (pkill|killall|fuser\ -k) | kill\ -(9|KILL|TERM|STOP) | kill\ \d
        | rm\ -\w* | rmdir | umount | mkfs | dd\ if | shred | truncate
        | apt(-get)?\ (remove|purge) | pip\ uninstall | modprobe\ -r | rmmod
        | reboot | shutdown | poweroff | sysctl\ .*(ip_forward|forwarding|disable_ipv6)
    )""",
    re.VERBOSE,
)
#: The forwarding switch of the overlay's own interface, and of a container that becomes a hub.
_OWN_SWITCHES = ("sysctl -w net.ipv4.conf.{interface}.forwarding=1", "--sysctl net.ipv4.ip_forward=1")
#: Deletion in prose, which a user would have to carry out.
_PROSE = re.compile(
    r"(?<!nft )\b(remove|delete|flush|drop|take away|get rid of)\b[^;.()]{0,30}"
    r"\b(route|rule|table|chain|interface|network|bridge)s?\b"
)


def harms(text: str, overlay: IPv4Network, interface: str = INTERFACE) -> list[str]:
    """Return one sentence per harmful command in this text; empty if all are harmless."""
    for harmless in _OWN_SWITCHES:
        text = text.replace(harmless.format(interface=interface), "")
    return [*_words_that_never_may(text), *_ip_commands(text, overlay, interface), *_nft_commands(text)]


def _words_that_never_may(text: str) -> Iterator[str]:
    for found in (*_NEVER.finditer(text), *_PROSE.finditer(text)):
        yield f"{found.group(0)}: never"


def _ip_commands(text: str, overlay: IPv4Network, interface: str) -> Iterator[str]:
    for command in _commands(text, "ip"):
        words = [word for word in command.split()[1:] if not word.startswith("-")]
        if len(words) < 2:
            continue
        kind, verb, rest = words[0], words[1], words[2:]
        if "route".startswith(kind) or kind == "route":
            yield from _route(command, verb, rest, overlay, interface)
        elif "rule".startswith(kind):
            yield from _rule(command, verb, rest, overlay)
        elif "link".startswith(kind) or kind in ("tuntap", "tunnel", "netns") or "address".startswith(kind):
            yield from _link(command, verb, rest, interface)


def _commands(text: str, program: str) -> Iterator[str]:
    for line in re.split(r"[;|\n`]|&&", text):
        found = re.search(rf"(?:^|[\s:(])({program} .*)", line)
        if found:
            yield found.group(1)


def _route(command: str, verb: str, rest: list[str], overlay: IPv4Network, interface: str) -> Iterator[str]:
    if verb not in _DELETES | _REPLACES:
        return
    network = _network(rest)
    # A single address whose packets a route sends into the tunnel, which cannot carry what it consists of.
    is_single = verb in _DELETES and bool(rest) and rest[0].endswith("/32")
    if not is_single and (network is None or not network.subnet_of(overlay)):
        yield f"{command}: not a route of the overlay"
    if _after(rest, "dev") != interface:
        yield f"{command}: not a route of meshray's"
    if verb in _DELETES and "flush".startswith(verb):
        yield f"{command}: flushes"


def _rule(command: str, verb: str, rest: list[str], overlay: IPv4Network) -> Iterator[str]:
    if verb in _DELETES:
        yield f"{command}: meshray makes no such rule on the machine"
    elif verb in _REPLACES:
        network = _network(rest[rest.index("to") + 1 :] if "to" in rest else [])
        if network is None or not network.subnet_of(overlay):
            yield f"{command}: sends more than the overlay elsewhere"


def _link(command: str, verb: str, rest: list[str], interface: str) -> Iterator[str]:
    deletes = verb in _DELETES or (verb == "set" and {"down", "netns", "name", "nomaster"} & set(rest))
    if deletes and interface not in rest:
        yield f"{command}: an interface that meshray did not make"


def _nft_commands(text: str) -> Iterator[str]:
    for command in _commands(text, "nft"):
        words = [word for word in command.split()[1:] if not word.startswith("-")]
        if (
            words
            and words[0] in ("delete", "flush", "destroy", "reset", "replace")
            and words[2:4] != ["inet", "meshray"]
        ):
            yield f"{command}: a table that meshray did not make"


def _network(words: list[str]) -> IPv4Network | None:
    for word in words:
        if word in _KINDS:
            continue
        try:
            return IPv4Network(word, strict=False)
        except ValueError:
            return None
    return None


def _after(words: list[str], key: str) -> str:
    return words[words.index(key) + 1] if key in words[:-1] else ""
