"""Each block of commands in the how-to guides names the test that runs it, or says why no test does.

See `tests.printed` for the marks. A named test either runs the block as printed (`printed("page.md", "beginning")`), or
has the block's commands among its own.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from meshray.cli.app import App
from meshray.cli.main import cli
from tests.printed import GUIDES, REPOSITORY, Block, blocks, printed

#: Commands with verbs.
GROUPS = {
    name
    for name in cli.list_commands(click.Context(cli))
    if isinstance(cli.get_command(click.Context(cli), name), click.Group)
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = [block for page in GUIDES for block in blocks(page)]
TESTED = [block for block in BLOCKS if block.mark == "tested"]


def runs(function: ast.AST, block: Block) -> bool:
    """Return whether a test runs this block as it is printed."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == printed.__name__:
            page, beginning = (ast.literal_eval(word) for word in node.args[:2])
            if page == block.page and block.code.startswith(beginning):
                return True
    return False


def function_of(module: Path, name: str) -> ast.AST | None:
    """Return a function of a module; None if it has none of this name."""
    functions = (node for node in ast.parse(module.read_text()).body if isinstance(node, FUNCTIONS))
    return next((function for function in functions if function.name == name), None)


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
        test = function_of(module, function)
        assert test, name
        if runs(test, block):
            return
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


def test_a_test_runs_what_it_takes_from_the_page() -> None:
    (block, other) = (Block("page.md", "tested", "", code) for code in ("meshray up\nls\n", "ls\n"))
    function = ast.parse("def test_x(host):\n    host.type(printed('page.md', 'meshray up', ('a', 'b')))\n")
    assert (runs(function, block), runs(function, other)) == (True, False)


def test_a_block_is_printed_once_and_its_placeholders_are_replaced() -> None:
    code = printed("lost-laptop.md", "sudo meshray node rm", ("laptop", "w1"))
    assert code == "sudo meshray node rm w1\n"
    for page, beginning, old in (
        ("lost-laptop.md", "nothing", ""),
        ("lost-laptop.md", "sudo", ""),
        ("lost-laptop.md", "sudo meshray node rm", "desktop"),
    ):
        with pytest.raises(AssertionError, match=page):
            printed(page, beginning, (old, "w1"))


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
