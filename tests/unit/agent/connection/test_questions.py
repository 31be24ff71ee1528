"""Questions of other nodes to an agent, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from meshray.agent.connection.questions import Questions
from meshray.errors import MeshrayError
from meshray.protocol.connection import MAX_ANSWER_BYTES, Answer, Ask


async def test_one_survey_serves_all_concurrent_queries() -> None:
    made = 0

    async def survey() -> Mapping[str, object]:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return {"made": made}

    questions = Questions({"survey": survey})
    answers = await asyncio.gather(*(questions.answer(Ask(str(n), "survey")) for n in range(3)))
    assert answers == [Answer(str(n), {"made": 1}) for n in range(3)]
    assert await questions.answer(Ask("3", "survey")) == Answer("3", {"made": 2})


async def test_a_failure_is_an_answer_and_the_next_query_is_sent_again() -> None:
    async def survey() -> Mapping[str, object]:
        raise MeshrayError("node_gone", "this node is not in the map")

    questions = Questions({"survey": survey})
    for number in ("1", "2"):
        assert await questions.answer(Ask(number, "survey")) == Answer(number, error="this node is not in the map")


def test_an_answer_is_never_longer_than_the_coordinator_takes() -> None:
    assert Answer("1", {"x": "x" * 1000}).bounded().error == ""
    too_long = Answer("1", {"x": "x" * MAX_ANSWER_BYTES}).bounded()
    assert (too_long.answer, too_long.error) == ({}, "its answer is longer than 256 KiB")
