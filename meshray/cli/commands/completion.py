"""`meshray completion`: the script with which a shell completes meshray's commands, options and node names."""

from __future__ import annotations

import click

from meshray.cli.file_result import FileResult
from meshray.cli.options import json_option
from meshray.protocol.answers import FileText


@click.command("completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@json_option
def completion_command(shell: str) -> FileResult:
    """Print the script with which a shell completes commands, options and node names.

    \b
    Examples:
      meshray completion bash | sudo tee /etc/bash_completion.d/meshray
      meshray completion zsh > ~/.zfunc/_meshray
      meshray completion fish > ~/.config/fish/completions/meshray.fish
    """
    from click.shell_completion import get_completion_class

    from meshray.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    return FileResult(FileText(f"completion {shell}", kind(cli, {}, "meshray", "_MESHRAY_COMPLETE").source()))
