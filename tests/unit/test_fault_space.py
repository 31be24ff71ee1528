"""The space of faults that can be drawn, and the draw."""

from __future__ import annotations

from collections import Counter

from meshray.doctor.check_order import SPECS
from tests.lab.drawn_fault import DEFAULT_NUMBER, NUMBER, OF_EACH_LAYER, SEED, Draw
from tests.lab.fault_space import SPACE


def test_the_space_is_large_and_every_fault_has_a_name() -> None:
    assert len(SPACE) >= 150
    assert len({fault.name for fault in SPACE}) == len(SPACE)
    assert {fault.layer for fault in SPACE} == {
        *("name", "route", "rule", "NAT", "link", "process", "files", "clock", "identity")
    }


def test_a_truth_names_checks_that_exist() -> None:
    codes = {spec.code for spec in SPECS}
    assert {code for fault in SPACE for code in fault.truth.codes} <= codes


def test_every_fault_can_be_healed_and_seen() -> None:
    for fault in SPACE:
        assert fault.inject, fault.name
        assert fault.heal, fault.name
        assert fault.effect.shell, fault.name


def test_the_seed_determines_the_draw() -> None:
    one, again, other = (Draw.of({SEED: seed, NUMBER: "40"}).faults(SPACE) for seed in ("7", "7", "8"))
    assert one == again
    assert one != other
    assert len({fault.name for fault in one}) == 40


def test_every_layer_is_drawn() -> None:
    for seed in range(20):
        layers = Counter(fault.layer for fault in Draw(seed, DEFAULT_NUMBER).faults(SPACE))
        assert min(layers.values()) >= OF_EACH_LAYER
        assert len(layers) == len({fault.layer for fault in SPACE})


def test_more_than_the_space_holds_is_the_whole_space() -> None:
    assert len(Draw(0, 10_000).faults(SPACE)) == len(SPACE)
