"""Checks of the ways to the hub and to the peers, with the facts that they look at (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from meshray.doctor.report import Spec


@dataclass(frozen=True)
class PathFacts:
    """Of one node."""


SPECS: tuple[Spec, ...] = ()
