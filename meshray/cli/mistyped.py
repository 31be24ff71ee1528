"""Suggest a command for one that does not exist. Pure.

>>> unknown("nodes", ["init", "node"])
"there is no command 'nodes'; did you mean: meshray node list"
>>> unknown("remove", ["add", "rm"], "node")
"there is no command 'node remove'; did you mean: meshray node rm"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: The commands of other programs, and verbs without their noun.
_SUGGESTIONS: Mapping[str, str] = {
    **dict.fromkeys(("nodes", "ls", "list"), "node list"),
    **dict.fromkeys(("rm", "remove", "delete"), "node rm"),
    **{verb: f"node {verb}" for verb in ("add", "drain", "rename", "rotate-key")},
    **dict.fromkeys(("tokens", "invite"), "token create --line"),
    **dict.fromkeys(("start", "restart", "connect"), "up"),
    **dict.fromkeys(("stop", "disconnect"), "down"),
    **dict.fromkeys(("uninstall", "quit", "logout"), "leave"),
    **dict.fromkeys(("log", "journal"), "logs"),
    **dict.fromkeys(("check", "diagnose", "debug"), "doctor"),
    **dict.fromkeys(("exec", "submit", "job"), "run -- COMMAND"),
    "help": "--help",
    "version": "--version",
}
#: Synonyms of verbs; a group has some of these.
_VERBS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("remove", "delete", "del", "rm"), ("rm", "revoke")),
    **dict.fromkeys(("ls", "show"), ("list",)),
    **dict.fromkeys(("new", "add"), ("create", "add")),
    "undrain": ("drain",),
    "mv": ("rename",),
}


def unknown(name: str, commands: Sequence[str], group: str = "") -> str:
    """Return the message about a command that does not exist.

    Args:
        commands: the existing commands.
        group: the words before it.
    """
    import difflib

    prefix = f"{group} " if group else ""
    known = (
        _SUGGESTIONS.get(name, "")
        if not group
        else next((verb for verb in _VERBS.get(name, ()) if verb in commands), "")
    )
    suggestion = known or next(iter(difflib.get_close_matches(name, commands, 1)), "")
    hint = f"; did you mean: meshray {prefix}{suggestion}" if suggestion else ""
    return f"there is no command {prefix + name[:40]!r}{hint}"
