"""Find and render templates.

In a checkout, templates/ is beside the package; in a wheel, it is inside the package. A template that uses an undefined
name raises an error.

    >>> (folder() / "meshray.service.j2").is_file()
    True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from meshray.errors import MeshrayError

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(package: Path = _PACKAGE) -> Path:
    """Return the folder of the templates of this installation.

    Raises:
        MeshrayError: templates_missing, if the installation is broken.
    """
    for candidate in (package / "templates", package.parent / "templates"):
        if (candidate / "meshray.service.j2").is_file():
            return candidate
    raise MeshrayError(
        "templates_missing",
        f"the templates of {package} are missing",
        hint="install meshray again: pip install --force-reinstall meshray",
    )


def render(name: str, values: Mapping[str, object], filters: Mapping[str, Callable[..., str]] | None = None) -> str:
    """Render a template.

    Args:
        name: the file name in templates/.
        values: the names that the template may use.
        filters: the filters that the template may use for escaping.

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
