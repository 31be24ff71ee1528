"""The lines of `meshray status` about tasks that wait."""

from __future__ import annotations

from ipaddress import IPv4Address

from meshray.agent.ray.waiting_tasks import waiting_notices
from meshray.model.ray_state import RayState, Waiting

HEAD, WORKER = IPv4Address("10.99.0.1"), IPv4Address("10.99.0.2")


def lines(*waiting: Waiting) -> tuple[str, ...]:
    return waiting_notices(
        {
            HEAD: RayState(True, {"CPU": 2.0, "memory": 2.0**33}, {"CPU": 2.0}, waiting=waiting),
            WORKER: RayState(True, {"CPU": 4.0, "GPU": 1.0, "memory": 2.0**33}, {"CPU": 3.5, "GPU": 1.0}),
            IPv4Address("10.99.0.3"): RayState(False, {"GPU": 8.0}),
        }
    )


def test_a_queue_longer_than_the_cluster_has_its_cause() -> None:
    assert lines(Waiting({"CPU": 1.0}, 58)) == ("58 tasks or actors wait for 1 CPU each: 5.5 of 6 CPU are in use",)
    assert lines(Waiting({"CPU": 1.0, "GPU": 1.0}, 1)) == (
        "1 task or actor waits for 1 CPU and 1 GPU: 1 of 1 GPU are in use",
    )
    assert lines(Waiting({"memory": 2.0**32}, 2)) == (
        "2 tasks or actors wait for 4.0 GiB memory each: the nodes are in use",
    )


def test_a_request_that_no_living_node_can_fulfil_says_so() -> None:
    assert lines(Waiting({"GPU": 4.0}, 2)) == (
        "2 tasks or actors wait for 4 GPU each, which no node has: add such a node, or ask for less",
    )


def test_nothing_waits() -> None:
    assert lines() == ()
    assert waiting_notices(None) == waiting_notices({}) == ()


def test_many_requests_are_summed_up() -> None:
    found = lines(*(Waiting({"CPU": float(number)}, number) for number in range(1, 6)))
    assert [line.split(" ")[0] for line in found] == ["5", "4", "3", "3"]
    assert "3 more tasks or actors wait for other resources" in found[3]
