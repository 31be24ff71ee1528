"""Each block of commands in the how-to guides names the test that runs it, or says why no test does.

A line above each block is one of

    <!-- tested: tests/lab/test_x.py::test_y, … -->     these tests run every command of the block
    <!-- not tried: REASON -->                          the site shows the reason to its readers
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from meshray.cli.app import App
from meshray.cli.main import cli

REPOSITORY = Path(__file__).resolve().parents[3]
GUIDES = [
    *sorted((REPOSITORY / "docs/how-to").glob("*.md")),
    *(REPOSITORY / "docs" / name for name in ("slurm.md", "kubernetes.md", "monitoring.md")),
]
MARK = re.compile(r"<!-- (tested|not tried): (.+) -->")
#: Commands with verbs.
GROUPS = {
    name
    for name in cli.list_commands(click.Context(cli))
    if isinstance(cli.get_command(click.Context(cli), name), click.Group)
}
#: Languages of fenced blocks that a shell does not run.
OTHER_LANGUAGES = {"python", "yaml"}
#: A block indented by four spaces or fenced, after an empty line, with the line above that.
BLOCK = re.compile(
    r"(?:^(?P<above>.*)\n)?\n(?P<code>(?: {4}.*\n|\n(?= {4}))+|```(?P<language>\w*)\n(?:.*\n)*?```)", re.M
)
#: A command of meshray with its words, up to a pipe, a separator or a remark.
COMMAND = re.compile(r"(?:^|[\s;(/])meshray\"?\)?\"? (?P<words>[a-z][^|;)\n]*)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        mark: ``tested``, ``not tried``, or empty.
        text: what follows the mark.
    """

    page: str
    mark: str
    text: str
    code: str

    def commands(self) -> list[list[str]]:
        """Return the words of each command of meshray."""
        joined = re.sub(r"\\\n\s*", " ", self.code)
        return [shlex.split(found["words"], comments=True) for found in COMMAND.finditer(joined)]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page that a shell runs."""
    for found in BLOCK.finditer(page.read_text()):
        if found["language"] not in OTHER_LANGUAGES:
            mark = MARK.fullmatch(found["above"] or "")
            code = re.sub(r"^ {4}", "", found["code"], flags=re.MULTILINE)
            yield Block(page.name, mark[1] if mark else "", mark[2] if mark else "", code)


BLOCKS = [block for page in GUIDES for block in blocks(page)]
TESTED = [block for block in BLOCKS if block.mark == "tested"]


def helpers(module: Path) -> set[Path]:
    """Return the modules of tests/ from which a test module imports."""
    names = re.findall(r"^from (tests\.[\w.]+) import (\w+)", module.read_text(), re.MULTILINE)
    paths = {REPOSITORY.joinpath(*name.split(".")).with_suffix(".py") for name, _ in names}
    return {path for path in paths if path.is_file()}


def texts(module: Path) -> str:
    """Return the texts of a module's code, without its docstrings."""
    nodes = list(ast.walk(ast.parse(module.read_text())))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = (node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return "\n".join(text for text in texts if isinstance(text, str))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_block_of_commands_is_marked(page: Path) -> None:
    assert [block.code for block in blocks(page) if not block.mark] == []


@pytest.mark.parametrize("block", TESTED, ids=lambda block: block.page)
def test_a_block_names_tests_that_have_its_commands(block: Block) -> None:
    modules = ""
    for name in block.text.split(", "):
        path, _, function = name.partition("::")
        module = REPOSITORY / path
        assert module.is_file(), name
        assert re.search(rf"^(?:async )?def {function}\(", module.read_text(), re.MULTILINE), name
        modules += "\n".join(map(texts, {module, *helpers(module)}))
    if "test_how_to.py" in block.text:
        return
    for words in block.commands():
        verbs = words[: 2 if words[0] in GROUPS else 1]
        for word in [*verbs, *(word for word in words if word.startswith("--") and len(word) > 2)]:
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", modules), f"{block.text}: no {word}"


def test_the_reasons_name_files_that_exist() -> None:
    named = [path for block in BLOCKS for path in re.findall(r"tests/[\w/.]*\w", block.text)]
    assert len(named) > 30
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_commands_that_render_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve.yaml").write_text("applications: []\n")
    ran = 0
    for block in BLOCKS:
        for words in block.commands():
            if words[0] == "render" and words[1] in RENDERED_ANYWHERE:
                app = App(tuple(words), environ={})
                result = CliRunner().invoke(cli, words, obj=app, prog_name="meshray")
                assert result.exit_code == 0, (block.page, words, result.output)
                written = tmp_path / words[words.index("-o") + 1]
                assert written.stat().st_size > 100
                written.unlink()
                ran += 1
    assert ran >= 7


#: What is rendered without a node.
RENDERED_ANYWHERE = {"grafana", "kuberay", "kubernetes", "slurm"}


def test_a_block_without_a_mark_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Do:\n\n    meshray up\n\n<!-- not tried: why -->\n\n    sudo meshray down\n    meshray up\n\n"
        "```python\nx\n```\n\n"
        "<!-- tested: a.py::b -->\n\n```sh\nmeshray status\n```\n"
    )
    found = list(blocks(page))
    assert {"node", "render", "token", "web"} <= GROUPS
    assert [block.mark for block in found] == ["", "not tried", "tested"]
    assert [block.commands() for block in found] == [[["up"]], [["down"], ["up"]], [["status"]]]
