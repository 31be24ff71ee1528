"""The agent with all that it does: `meshray.agent.agent` keeps the node, the others look at it.

>>> agent = make_agent(home, enrolment, key, mesh_map, parts)
>>> await agent.run()
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping

from meshray.agent.agent import Agent, Hooks
from meshray.agent.connection.questions import Questions
from meshray.agent.dependencies import Dependencies
from meshray.agent.roaming import follow_device, follow_network
from meshray.agent.startup import Startup
from meshray.agent.status.snapshot import hello_of
from meshray.home import Home
from meshray.model.keys import PrivateKey
from meshray.model.meshmap import MeshMap
from meshray.model.question import ROTATE_KEY, SURVEY
from meshray.node.enrolment import Enrolment


def make_agent(
    home: Home, enrolment: Enrolment, private_key: PrivateKey, mesh_map: MeshMap, parts: Dependencies
) -> Agent:
    """Return an agent that is ready to run."""
    return Agent(home, enrolment, private_key, mesh_map, parts, hooks=Hooks(hello_of, _questions, _services))


def _services(agent: Agent) -> Mapping[str, Coroutine[object, object, None]]:
    parts = agent.parts
    services: dict[str, Coroutine[object, object, None]] = {"stages": Startup(agent).run()}
    if parts.network_changes is not None:
        services["network"] = follow_network(agent, parts.network_changes)
    if parts.device_changes is not None:
        services["device monitor"] = follow_device(agent, parts.device_changes)
    return services


def _questions(agent: Agent) -> Questions:
    async def survey() -> Mapping[str, object]:
        # Imported with the first question: the checks' groups are large, and most nodes are never asked.
        from meshray.agent.status.survey import survey
        from meshray.doctor.facts import encode

        _, facts = await survey(agent, None)
        return encode(facts)

    return Questions({SURVEY: survey, ROTATE_KEY: agent.keys.rotate})
