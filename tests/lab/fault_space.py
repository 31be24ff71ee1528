"""All faults that can be drawn: layers × places × directions × degrees."""

from __future__ import annotations

from tests.lab.drawn_fault import DrawnFault
from tests.lab.drawn_machine import MACHINE
from tests.lab.drawn_routes import ROUTES
from tests.lab.drawn_rules import RULES

SPACE: tuple[DrawnFault, ...] = (*RULES, *ROUTES, *MACHINE)
