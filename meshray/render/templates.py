"""Where templates lie and how they are filled in.

In a checkout they lie in templates/ beside the package, in a wheel inside it. A name that a template uses and that was
not given is an error, never an empty string.

    >>> (folder() / "meshray.service.j2").is_file()
    True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from meshray.errors import MeshrayError

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(package: Path = _PACKAGE) -> Path:
    """The folder of the templates that belong to this meshray.

    Raises:
        MeshrayError: templates_missing, from a broken installation.
    """
    for candidate in (package / "templates", package.parent / "templates"):
        if (candidate / "meshray.service.j2").is_file():
            return candidate
    raise MeshrayError(
        "templates_missing",
        f"the templates that belong to {package} are not there",
        hint="install meshray again: pip install --force-reinstall meshray",
    )


def render(name: str, values: Mapping[str, object], filters: Mapping[str, Callable[..., str]] | None = None) -> str:
    """The template of that name, filled in.

    Args:
        name: file name in templates/.
        values: what the template may use.
        filters: how it may escape.

    Raises:
        MeshrayError: templates_missing.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - configuration files; each template names the escaping its format needs
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name).render(dict(values))
