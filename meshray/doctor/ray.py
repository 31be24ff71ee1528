"""Checks of a node's Ray, and the others' Ray as it reaches them, with the facts that they look at (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from meshray.doctor.report import Spec


@dataclass(frozen=True)
class RayFacts:
    """Of one node."""


SPECS: tuple[Spec, ...] = ()
