"""Checks of the coordinator as a node reaches it, with the facts that they look at (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from meshray.doctor.report import Spec


@dataclass(frozen=True)
class ControlFacts:
    """Of one node."""


SPECS: tuple[Spec, ...] = ()
