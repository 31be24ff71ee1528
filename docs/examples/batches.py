"""Works through a pile of batches in parallel: once with tasks, once with actors that keep what is dear to prepare.

meshray run -- python docs/examples/batches.py

The work is to count the primes below a million, in batches of numbers. A task brings all it needs; an actor has learnt
the small primes once, when it started, and is then faster with each batch.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import ray
from ray.util import ActorPool

LIMIT = 1_000_000
BATCH = 50_000
#: As everybody knows.
PRIMES_BELOW_LIMIT = 78_498


def small_primes(limit: int) -> list[int]:
    """The primes up to limit, by trial division."""
    found: list[int] = []
    for number in range(2, limit + 1):
        if all(number % prime for prime in found if prime * prime <= number):
            found.append(number)
    return found


def count_primes(batch: range, divisors: list[int]) -> int:
    """How many primes a batch of consecutive numbers holds, by crossing out multiples of the divisors."""
    is_prime = bytearray([1]) * len(batch)
    for prime in divisors:
        first = max(prime * prime, -(-batch.start // prime) * prime)
        is_prime[first - batch.start :: prime] = bytes(len(range(first, batch.stop, prime)))
    return sum(is_prime) - len(range(batch.start, min(2, batch.stop)))


@ray.remote(scheduling_strategy="SPREAD")
def one_batch(batch: range) -> tuple[str, int]:
    """A task: where it ran, how many primes it found."""
    return ray.get_runtime_context().get_node_id(), count_primes(batch, small_primes(math.isqrt(LIMIT)))


@ray.remote(scheduling_strategy="SPREAD")
class PrimeCounter:
    """An actor: prepares once, then takes batch after batch."""

    def __init__(self) -> None:
        self._divisors = small_primes(math.isqrt(LIMIT))
        self._node = ray.get_runtime_context().get_node_id()

    def count(self, batch: range) -> tuple[str, int]:
        """Where it lives, how many primes it found."""
        return self._node, count_primes(batch, self._divisors)


def with_tasks(batches: list[range], at_once: int) -> Iterator[tuple[str, int]]:
    """As many tasks as there are CPUs, a new one for each that is done: the pile may be larger than memory."""
    waiting = list(batches)
    running: list[ray.ObjectRef] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(one_batch.remote(waiting.pop()))
        done, running = ray.wait(running, timeout=45)
        assert done, "no task was done within 45 s"
        yield from ray.get(done)


def with_actors(batches: list[range], count: int) -> Iterator[tuple[str, int]]:
    """A pool of actors; whichever is free takes the next batch."""
    pool = ActorPool([PrimeCounter.remote() for _ in range(count)])
    yield from pool.map_unordered(lambda actor, batch: actor.count.remote(batch), batches)


def report(title: str, results: Iterable[tuple[str, int]], names: dict[str, str]) -> None:
    """Adds up, checks, and tells which node did how much."""
    start = time.perf_counter()
    total = 0
    by_node: Counter[str] = Counter()
    for node, found in results:
        total += found
        by_node[names[node]] += 1
    shares = ", ".join(f"{name} {share}" for name, share in sorted(by_node.items()))
    print(f"{title}: {total} primes in {time.perf_counter() - start:.1f} s; batches by node: {shares}")
    assert total == PRIMES_BELOW_LIMIT


def main() -> None:
    """The same batches both ways."""
    ray.init("auto")
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    cpus = max(1, int(ray.cluster_resources()["CPU"]))
    batches = [range(start, start + BATCH) for start in range(0, LIMIT, BATCH)]
    report("tasks", with_tasks(batches, at_once=cpus), names)
    report("actors", with_actors(batches, count=min(cpus, 4)), names)


if __name__ == "__main__":
    main()
