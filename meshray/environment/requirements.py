"""The requirements that `meshray env lock` records: read, sifted, and nothing in them that only one machine has (pure).

>>> sift("numpy==2.1.0  # fast\\n-e /home/ada/lib\\nray==2.60.0\\n").lines
('numpy==2.1.0',)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

#: They come with every node in the version of the head, or of the node itself.
_OWN = frozenset({"ray", "meshray"})
_COMMENT = re.compile(r"(^|\s)#.*$")
_HASHES = re.compile(r"(\s--hash=\w+:[0-9a-fA-F]+)+$")


@dataclass(frozen=True)
class Sifted:
    """What a requirements file says.

    Attributes:
        lines: requirements that an index can answer, one each, sorted.
        refused: what no other machine could install, as it stands there: a path, a checkout, an option.
    """

    lines: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def text(self) -> str:
        """One requirement a line."""
        return "".join(f"{line}\n" for line in self.lines)


def sift(text: str) -> Sifted:
    """Reads the form of pip's requirements files, which is what `pip freeze` writes. Ray and meshray are left out."""
    lines, refused = set[str](), list[str]()
    for line in _logical_lines(text):
        wanted, hashes = _HASHES.sub("", line), _HASHES.search(line)
        try:
            requirement = Requirement(wanted)
        except InvalidRequirement:
            refused.append(line)
            continue
        if canonicalize_name(requirement.name) in _OWN:
            continue
        if requirement.url is not None:
            refused.append(_without_secrets(line))
            continue
        lines.add(str(requirement) + (hashes.group() if hashes else ""))
    return Sifted(tuple(sorted(lines)), tuple(map(_without_secrets, refused)))


def _logical_lines(text: str) -> Iterator[str]:
    """Without comments and empty lines; a backslash at a line's end goes on with the next."""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        said = _COMMENT.sub("", line).strip()
        if said:
            yield re.sub(r"\s+(?=--hash)", " ", said)


def _without_secrets(line: str) -> str:
    """An address may hold a password."""
    return re.sub(r"://[^/@\s]*@", "://", line)[:120]
