"""The result of each command, made from the documented example of its answer."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from meshray.cli import commands
from meshray.cli.commands.env import EnvResult
from meshray.cli.join_result import JoinResult
from meshray.cli.result import Result
from meshray.protocol.answers import EXAMPLES, Environment
from meshray.protocol.codec import to_json

for _module in pkgutil.iter_modules(commands.__path__):
    importlib.import_module(f"{commands.__name__}.{_module.name}")

#: The type of an answer → the class of its result.
RESULTS: Mapping[type, type[Result[Any]]] = {
    get_args(kind.__orig_bases__[0])[0]: kind  # type: ignore[attr-defined]
    for kind in Result.__subclasses__()
}


def result_of(answer: msgspec.Struct) -> Result[Any]:
    """Return the command's result with this answer."""
    if isinstance(answer, Environment):
        return EnvResult(answer, leads=True)
    # The answer of `up` is that of `join` without the fields of `join`.
    return RESULTS[type(answer)](answer) if type(answer) in RESULTS else JoinResult.read(to_json(answer), fresh=False)


BY_COMMAND: Mapping[str, Result[Any]] = {command: result_of(answer) for command, answer in EXAMPLES.items()}
