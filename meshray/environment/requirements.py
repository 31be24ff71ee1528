"""The requirements that `meshray env lock` records, without those that only one machine can install (pure).

>>> parse_requirements("numpy==2.1.0  # fast\\n-e /home/ada/lib\\nray==2.60.0\\n").lines
('numpy==2.1.0',)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

#: Every node has these in the version of the head, or its own version.
_OWN = frozenset({"ray", "meshray"})
_COMMENT = re.compile(r"(^|\s)#.*$")
_HASHES = re.compile(r"(\s--hash=\w+:[0-9a-fA-F]+)+$")


@dataclass(frozen=True)
class ParsedRequirements:
    """The parsed content of a requirements file.

    Attributes:
        lines: requirements that can be installed from an index, sorted.
        refused: lines that no other machine could install: a path, a checkout, an option.
    """

    lines: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def text(self) -> str:
        """The requirements, one per line."""
        return "".join(f"{line}\n" for line in self.lines)


def parse_requirements(text: str) -> ParsedRequirements:
    """Parse a requirements file of pip, such as the output of `pip freeze`. Ray and meshray are omitted."""
    lines, refused = set[str](), list[str]()
    for line in _logical_lines(text):
        specifier, hashes = _HASHES.sub("", line), _HASHES.search(line)
        try:
            requirement = Requirement(specifier)
        except InvalidRequirement:
            refused.append(line)
            continue
        if canonicalize_name(requirement.name) in _OWN:
            continue
        if requirement.url is not None:
            refused.append(_without_secrets(line))
            continue
        lines.add(str(requirement) + (hashes.group() if hashes else ""))
    return ParsedRequirements(tuple(sorted(lines)), tuple(map(_without_secrets, refused)))


def _logical_lines(text: str) -> Iterator[str]:
    """Yield the lines without comments and empty lines. A backslash at the end of a line joins it with the next."""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        requirement_line = _COMMENT.sub("", line).strip()
        if requirement_line:
            yield re.sub(r"\s+(?=--hash)", " ", requirement_line)


def _without_secrets(line: str) -> str:
    """Remove passwords from URLs."""
    return re.sub(r"://[^/@\s]*@", "://", line)[:120]
