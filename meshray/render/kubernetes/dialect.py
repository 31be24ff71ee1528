r"""Two ways to fill in one template of Kubernetes' objects: with values, or with Helm's expressions.

The templates in templates/kubernetes/ contain each object once. They name their values, and a dialect decides what
takes the place of a name:

    image: {{ text("image") }}        Plain   image: "registry.example.org/ray:1"
                                      Chart   image: {{ .Values.image | quote }}

>>> Plain({"gpus": 2}).text("gpus", "--num-gpus="), Chart({"gpus": ""}).text("gpus", "--num-gpus=")
('"--num-gpus=2"', '{{ printf "--num-gpus=%v" .Values.gpus | quote }}')
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from meshray.render.yaml_scalars import quoted

#: Renders the lines inside a block of a template.
Body = Callable[[], str]


class Dialect(ABC):
    """What templates can say about a value."""

    @abstractmethod
    def text(self, name: str, prefix: str = "", suffix: str = "") -> str:
        """Return a quoted scalar: the prefix, the value and the suffix."""

    @abstractmethod
    def number(self, name: str) -> str:
        """Return the value as a number, or as true or false."""

    @abstractmethod
    def items(self, name: str, indent: int, prefix: str = "") -> str:
        """Return one line per item of a list, each quoted after the prefix."""

    @abstractmethod
    def extra(self, name: str, indent: int, field: str | None = None) -> str:
        """Return a field that users of the chart set as YAML; empty in plain files.

        Args:
            name: the value in values.yaml.
            field: the name of the field; None: that of the value; empty: the YAML continues the list above it.
        """

    @abstractmethod
    def given(self, name: str, caller: Body) -> str:
        """Return the lines of the block if the value is set: neither 0, empty nor false."""

    @abstractmethod
    def missing(self, name: str, caller: Body) -> str:
        """Return the lines of the block if the value is not set."""

    @property
    def names(self) -> dict[str, Callable[..., str]]:
        """The functions of a template."""
        found = (self.text, self.number, self.items, self.extra, self.given, self.missing)
        return {function.__name__: function for function in found}


class Plain(Dialect):
    """Values: the result can be applied as it is."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def text(self, name: str, prefix: str = "", suffix: str = "") -> str:
        """See `Dialect`."""
        return quoted(f"{prefix}{self._values[name]}{suffix}")

    def number(self, name: str) -> str:
        """See `Dialect`."""
        value = self._values[name]
        return str(value).lower() if isinstance(value, bool) else str(value)

    def items(self, name: str, indent: int, prefix: str = "") -> str:
        """See `Dialect`."""
        return "\n".join(f"{' ' * indent}- {quoted(f'{prefix}{item}')}" for item in self._list(name))

    def extra(self, name: str, indent: int, field: str | None = None) -> str:
        """See `Dialect`."""
        return ""

    def given(self, name: str, caller: Body) -> str:
        """See `Dialect`."""
        return caller() if self._values[name] else ""

    def missing(self, name: str, caller: Body) -> str:
        """See `Dialect`."""
        return "" if self._values[name] else caller()

    def _list(self, name: str) -> Iterable[object]:
        return cast(Iterable[object], self._values[name])


class Chart(Dialect):
    """Expressions for Helm.

    Args:
        expressions: by name, an expression of Go's templates; empty: the value of that name in values.yaml.
    """

    def __init__(self, expressions: Mapping[str, str]) -> None:
        self._expressions = expressions

    def text(self, name: str, prefix: str = "", suffix: str = "") -> str:
        """See `Dialect`."""
        if not prefix + suffix:
            return f"{{{{ {self._of(name)} | toString | quote }}}}"
        return f'{{{{ printf "{prefix}%v{suffix}" {self._of(name)} | quote }}}}'

    def number(self, name: str) -> str:
        """See `Dialect`."""
        return f"{{{{ {self._of(name)} }}}}"

    def items(self, name: str, indent: int, prefix: str = "") -> str:
        """See `Dialect`."""
        line = f'{" " * indent}- {{{{ printf "{prefix}%v" . | quote }}}}'
        return f"{{{{- range {self._of(name)} }}}}\n{line}\n{{{{- end }}}}"

    def extra(self, name: str, indent: int, field: str | None = None) -> str:
        """See `Dialect`."""
        head = f"{' ' * indent}{name if field is None else field}:\n" if field != "" else ""
        depth = indent + 2 if head else indent
        return (
            f"{{{{- with .Values.{name} }}}}\n{head}{' ' * depth}{{{{- toYaml . | nindent {depth} }}}}\n{{{{- end }}}}"
        )

    def given(self, name: str, caller: Body) -> str:
        """See `Dialect`."""
        return f"{{{{- if {self._of(name)} }}}}\n{caller()}{{{{- end }}}}\n"

    def missing(self, name: str, caller: Body) -> str:
        """See `Dialect`."""
        return f"{{{{- if not {self._of(name)} }}}}\n{caller()}{{{{- end }}}}\n"

    def _of(self, name: str) -> str:
        return self._expressions[name] or f".Values.{name}"
