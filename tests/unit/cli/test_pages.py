"""The pages for users: meshray understands each command in them, and each link leads somewhere.

README.md links to each page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from meshray.cli.app import App
from meshray.cli.main import cli
from meshray.cli.variables import names_for

REPOSITORY = Path(__file__).resolve().parents[3]
HOW_TO = sorted((REPOSITORY / "docs/how-to").glob("*.md"))
PAGES = [REPOSITORY / "README.md", REPOSITORY / "docs/slurm.md", REPOSITORY / "containers/README.md", *HOW_TO]
#: A command in a block of a page: after variables, sudo, ssh or docker, by its name, a path or `which`.
COMMAND = re.compile(r"(?:^|[\s;(])(?:\"\$\(which meshray\)\"|[\w~/.]*/?meshray)(?= [a-z-])(?P<words>[^|;)]*)")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


def commands(page: Path) -> Iterator[str]:
    """Yield the arguments after `meshray` in each line of the page's blocks."""
    for line in page.read_text().splitlines():
        if line.startswith("    ") and not line.lstrip().startswith(("#", "-", "*")):
            yield from (found["words"] for found in COMMAND.finditer(re.sub(r"\s#.*| {3,}.*", "", line[4:])))


def understood(words: list[str]) -> None:
    """Raise click's error about the command, if any."""
    command: click.Command = cli
    parent, name = click.Context(cli, obj=App(tuple(words), environ={}), **cli.context_settings), "meshray"
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(parent, name)
        assert found is not None, f"{name} is no command"
        command = found
    command.make_context(name, words, parent=parent)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_each_command_of_the_pages_is_understood(page: Path) -> None:
    for words in commands(page):
        try:
            understood(shlex.split(words))
        except click.ClickException as error:
            pytest.fail(f"meshray{words}: {error.format_message()}")


@pytest.mark.parametrize("page", [*PAGES, *(REPOSITORY / "docs").glob("*.md")], ids=lambda page: page.name)
def test_each_link_leads_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_leads_to_each_page() -> None:
    linked = set(LINK.findall((REPOSITORY / "README.md").read_text()))
    assert {f"docs/how-to/{page.name}" for page in HOW_TO} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_variable_of_the_pages_is_one(page: Path) -> None:
    known = {
        str(given.envvar)
        for name in ("init", "join")
        for given in cli.get_command(click.Context(cli), name).params  # type: ignore[union-attr]
        if given.envvar
    }
    named = set(re.findall(r"MESHRAY_(?:INIT|JOIN)_[A-Z_]+", page.read_text()))
    assert named <= known
    assert all(names_for(name.split("_")[1].lower(), {name: ""}) for name in named)


def test_the_pages_have_commands() -> None:
    assert sum(len(list(commands(page))) for page in HOW_TO) > 20
    for words in (["dashboard", "--nonsense"], ["node", "drian", "x"], ["join", "--transport", "tcp", "TOKEN"]):
        with pytest.raises((click.ClickException, AssertionError)):
            understood(words)
