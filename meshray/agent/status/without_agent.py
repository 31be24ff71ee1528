"""The facts about this machine that a user can find out while no agent runs.

>>> facts = asyncio.run(survey_without_agent(home))
>>> facts.host, facts.path
(HostFacts(…), None)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace

from meshray.agent.status.doctor_survey import GROUP_S, context_of
from meshray.doctor import host_probe
from meshray.doctor.context import Context
from meshray.doctor.control import probe as control
from meshray.doctor.deadlines import in_time
from meshray.doctor.facts import NodeFacts
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.meshmap import MeshMap
from meshray.node.enrolment import Enrolment
from meshray.node.map_cache import load_map


async def survey_without_agent(home: Home, environ: Mapping[str, str] = os.environ) -> NodeFacts:
    """Examine the machine and, once it is enrolled, the path to the coordinator, with this user's permissions."""
    context = context_without_agent(home, environ)
    found = await asyncio.gather(
        in_time(host_probe.measure(context), GROUP_S), in_time(control.measure(context), GROUP_S)
    )
    return NodeFacts(context.name, host=found[0], control=found[1])


def context_without_agent(home: Home, environ: Mapping[str, str]) -> Context:
    """Return what is known without an agent: this node and the last map, if they can be read."""
    try:
        enrolment = Enrolment.load(home)
    except MeshrayError:
        return Context(home, environ)
    return replace(context_of(home, enrolment, _last_map(home)), environ=environ)


def _last_map(home: Home) -> MeshMap | None:
    try:
        return load_map(home)
    except MeshrayError:  # The agent's last error, which the report shows.
        return None
