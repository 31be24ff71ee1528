r"""Prometheus' text format 0.0.4, as far as the agent uses it (pure).

prometheus_client is not used here: its writer imports the web servers of the standard library and takes 1.5 MB of the
agent's memory. The tests compare both.

>>> family = Family("meshray_ray_alive", GAUGE, "Whether Ray lists it.", ("mesh", "node"))
>>> family.add(("lab", "gpu-1"), 1)
>>> family.text()
'# HELP meshray_ray_alive Whether Ray lists it.\n# TYPE meshray_ray_alive gauge\nmeshray_ray_alive{…} 1.0\n'
"""

from __future__ import annotations

from collections.abc import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GAUGE, COUNTER = "gauge", "counter"
_IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Family:
    """A metric with all its series.

    Args:
        name: its name; in the text, that of a counter ends in ``_total``.
        kind: GAUGE or COUNTER.
        labels: the names of the labels of each series.
    """

    def __init__(self, name: str, kind: str, description: str, labels: Sequence[str]) -> None:
        self._name = name = f"{name}_total" if kind == COUNTER else name
        self._labels = tuple(labels)
        self._lines = [f"# HELP {name} {description.translate(_IN_HELP)}\n", f"# TYPE {name} {kind}\n"]

    def add(self, values: Sequence[str], value: float) -> None:
        """Add a series.

        Args:
            values: one for each label.
        """
        pairs = zip(self._labels, values, strict=True)
        labels = ",".join(f'{label}="{text.translate(_IN_LABEL)}"' for label, text in pairs)
        self._lines.append(f"{self._name}{{{labels}}} {float(value)!r}\n")

    def text(self) -> str:
        """Return the lines of this metric."""
        return "".join(self._lines)
