"""Prepare requests in batches, answer them with one provider on each node, and serve the answers over HTTP.

    requests ──tasks: preprocess──► batches ──actors: one provider per node──► collector ◄── GET /output

`submit.py` submits it. The application `requests` listens on port 8350 of every node.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import humanize
import ray
from fastapi import FastAPI
from ray import serve
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PORT = 8350
REQUESTS = [f"request {number:03}" for number in range(60)]
BATCH = 10
#: How long one answer takes, seconds: a language model or another service would be called here.
WORK_S = 0.02

api = FastAPI()


@ray.remote(num_cpus=0.5)
def preprocess(batch: Sequence[str]) -> list[str]:
    """Return a batch of requests as the providers want them."""
    return [text.strip().title() for text in batch]


@ray.remote(num_cpus=0)
class Provider:
    """Answers requests on the node to which it is pinned."""

    def answer(self, batch: Sequence[str]) -> list[dict[str, str]]:
        """Return one answer for each request, with the node that gave it."""
        time.sleep(WORK_S * len(batch))
        return [{"request": text, "answer": text.upper(), "node": socket.gethostname()} for text in batch]


@ray.remote(num_cpus=0)
class Collector:
    """Holds the answers for the application, which outlives the tasks."""

    def __init__(self) -> None:
        self._answers: list[dict[str, str]] = []
        self._started = time.time()

    def add(self, answers: Sequence[dict[str, str]]) -> None:
        """Store more answers."""
        self._answers += answers

    def output(self) -> dict[str, Any]:
        """Return all answers so far, and by which nodes they were given."""
        return {
            "answers": self._answers,
            "count": len(self._answers),
            "nodes": sorted({answer["node"] for answer in self._answers}),
            "age": humanize.naturaldelta(time.time() - self._started),
        }


@serve.deployment(max_replicas_per_node=1, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Output:
    """The application: every node has a replica, and so an HTTP proxy of Ray Serve."""

    def __init__(self, collector: Any) -> None:
        self._collector = collector

    @api.get("/output")
    async def output(self) -> dict[str, Any]:
        """Return what the collector has."""
        answer: dict[str, Any] = await self._collector.output.remote()
        return {**answer, "served_by": socket.gethostname()}


def batches(requests: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the requests in batches."""
    for start in range(0, len(requests), BATCH):
        yield requests[start : start + BATCH]


def main() -> None:
    """Run the pipeline, and keep its application up for a while."""
    parser = argparse.ArgumentParser(description="Answer requests on all nodes, and serve the answers.")
    parser.add_argument("--keep", type=int, default=120, help="how long the application stays up, seconds")
    keep = parser.parse_args().keep

    ray.init()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    collector = Collector.remote()
    # 0.0.0.0: reachable at the overlay address. meshray closes the port to every other network.
    serve.start(proxy_location="EveryNode", http_options={"host": "0.0.0.0", "port": PORT})
    serve.run(Output.options(num_replicas=len(nodes)).bind(collector), name="requests", route_prefix="/")
    print(f"serving on {len(nodes)} nodes, port {PORT}", flush=True)

    providers = [
        Provider.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    answers = []
    for number, batch in enumerate(batches(REQUESTS)):
        # The reference goes from the task to the actor; the batch itself never passes through this process.
        answers.append(providers[number % len(providers)].answer.remote(preprocess.remote(batch)))
    while answers:
        ready, answers = ray.wait(answers, timeout=60)
        ray.get([collector.add.remote(ray.get(one)) for one in ready])
    output = ray.get(collector.output.remote())
    print(f"{output['count']} answers from {', '.join(output['nodes'])}", flush=True)

    time.sleep(keep)
    serve.shutdown()


if __name__ == "__main__":
    main()
