"""Trains a small neural network on all nodes at once: data-parallel gradient descent with actors and numpy.

meshray run -- python docs/examples/train.py          (on every node: pip install 'meshray[examples]')

Each trainer keeps a shard of the data and never sends it anywhere. In every step it gets the weights, answers with the
gradient of its next batch, and the mean of all gradients makes the next weights.
"""

from __future__ import annotations

import time

import ray

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as missing:
    raise SystemExit(f"{missing}\nThis example needs, on every node: pip install 'meshray[examples]'") from missing

Array = NDArray[np.float64]
Weights = list[Array]

STEPS = 400
BATCH = 256
SAMPLES_PER_TRAINER = 4_000
HIDDEN = 32
RATE = 1.5
MOMENTUM = 0.9


def two_moons(count: int, seed: int) -> tuple[Array, Array]:
    """Points of two interleaved half circles with some noise, and to which of the two each belongs (0 or 1)."""
    random = np.random.default_rng(seed)
    angle = random.uniform(0, np.pi, count)
    label = random.integers(0, 2, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    points = np.where(label[:, None] == 0, upper, lower)
    return points + random.normal(0, 0.1, points.shape), label.astype(float)


def initial_weights(seed: int) -> Weights:
    """Two layers: 2 inputs, HIDDEN tanh units, 1 logistic output."""
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, (2, HIDDEN)), np.zeros(HIDDEN), random.normal(0, 0.2, HIDDEN), np.zeros(1)]


def forward(weights: Weights, points: Array) -> tuple[Array, Array]:
    """What the hidden units say, and the probability of label 1."""
    hidden = np.tanh(points @ weights[0] + weights[1])
    return hidden, 1 / (1 + np.exp(-(hidden @ weights[2] + weights[3])))


def loss(probability: Array, label: Array) -> float:
    """Cross entropy."""
    likely = np.clip(np.where(label == 1, probability, 1 - probability), 1e-12, 1)
    return float(-np.log(likely).mean())


def gradient(weights: Weights, points: Array, label: Array) -> tuple[Weights, float]:
    """By how much the loss changes with each weight, and the loss."""
    hidden, probability = forward(weights, points)
    error = (probability - label) / len(label)
    back = np.outer(error, weights[2]) * (1 - hidden**2)
    return [points.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(keepdims=True)], loss(probability, label)


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
class Trainer:
    """Keeps a shard of the data on its node."""

    def __init__(self, shard: int) -> None:
        self._points, self._label = two_moons(SAMPLES_PER_TRAINER, seed=shard)
        self._random = np.random.default_rng(shard)

    def node(self) -> str:
        """On which node it lives."""
        return str(ray.get_runtime_context().get_node_id())

    def step(self, weights: Weights) -> tuple[Weights, float]:
        """Gradient and loss of a random batch of its shard."""
        chosen = self._random.integers(0, len(self._label), BATCH)
        return gradient(weights, self._points[chosen], self._label[chosen])


def main() -> None:
    """Trains, shows the loss, and checks the result on points that no trainer has seen."""
    ray.init("auto")
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    cpus = int(ray.cluster_resources()["CPU"])
    trainers = [Trainer.remote(shard) for shard in range(1, min(cpus, max(2, len(names))) + 1)]
    where = [names[node] for node in ray.get([trainer.node.remote() for trainer in trainers], timeout=45)]
    print(f"{len(trainers)} trainers on {', '.join(sorted(where))}")

    weights = initial_weights(seed=0)
    speed = [np.zeros_like(weight) for weight in weights]
    start = time.perf_counter()
    first_loss = mean_loss = float("nan")
    for step in range(STEPS):
        shared = ray.put(weights)  # sent to each node once, however many trainers it has
        results = ray.get([trainer.step.remote(shared) for trainer in trainers], timeout=45)
        mean_loss = float(np.mean([one_loss for _, one_loss in results]))
        first_loss = mean_loss if step == 0 else first_loss
        for index, gradients in enumerate(zip(*(one for one, _ in results), strict=True)):
            speed[index] = MOMENTUM * speed[index] - RATE * (1 - MOMENTUM) * np.mean(gradients, axis=0)
            weights[index] = weights[index] + speed[index]
        if step % 80 == 0 or step == STEPS - 1:
            print(f"step {step:3}: loss {mean_loss:.4f}")
    points, label = two_moons(4_000, seed=12345)
    accuracy = float(((forward(weights, points)[1] > 0.5) == label).mean())
    seconds = time.perf_counter() - start
    print(f"{accuracy:.1%} of unseen points are right after {STEPS} steps in {seconds:.1f} s")
    assert mean_loss < first_loss / 20
    assert accuracy > 0.99


if __name__ == "__main__":
    main()
