"""Hooks of mkdocs for the documentation's site: what GitHub shows differently than Python-Markdown.

- Headings get the anchors that GitHub gives them, so links to headings work on both.
- Links to files outside docs/ lead to the repository on GitHub; such a file must exist.
- The mark ``<!-- not tried: REASON -->`` above a block of commands becomes a visible note.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
#: The target of `[text](target)`, without a title after it.
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_NOT_TRIED = re.compile(r"^<!-- not tried: (.+?) -->$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)


def github_anchor(text: str, separator: str) -> str:
    """Return the name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", separator)


def on_config(config: Any) -> Any:
    """Set the anchors of headings."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = github_anchor
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Return the page with links out of docs/ led to GitHub, and with visible notes about commands without a test."""
    folder = (Path(config.docs_dir) / page.file.src_uri).parent

    def linked(found: re.Match[str]) -> str:
        target = found[2]
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = (folder / target).resolve()
        is_page = path.is_relative_to(config.docs_dir) and path.is_file() and "examples" not in path.parts
        if is_page:
            return found[0]
        if not path.is_relative_to(REPOSITORY) or not path.exists():
            raise SystemExit(f"{page.file.src_uri}: {target} does not exist")
        kind = "tree" if path.is_dir() else "blob"
        return f"{found[1]}{config.repo_url}/{kind}/main/{path.relative_to(REPOSITORY).as_posix()}{found[3]}"

    # Blocks of code stay as they are.
    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(linked, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    parts.append(_LINK.sub(linked, markdown[end:]))
    return _NOT_TRIED.sub(lambda found: f"*No test runs these commands: {found[1]}.*", "".join(parts))
