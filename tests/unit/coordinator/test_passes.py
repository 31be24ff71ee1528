"""The steps of passes: who gets one, and what ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshray.coordinator import passes
from meshray.coordinator.admission import ConflictError, UnknownError
from meshray.coordinator.passes import added, all_revoked, bound, revoked
from meshray.coordinator.records import DropPass, PassRecord, PutPass
from meshray.coordinator.registry import Registry
from meshray.model.permission_level import Level

from .people import NOW, new_mesh


def made(pass_id: str = "p1", name: str = "ana", ttl_s: float = 60.0) -> PassRecord:
    return PassRecord(pass_id, name, f"hash of {pass_id}", Level.READ, NOW, NOW + ttl_s)


def with_passes(*records: PassRecord) -> Registry:
    return replace(new_mesh(), passes={record.id: record for record in records})


def test_a_name_has_one_pass_that_works() -> None:
    registry, rows, _ = added(new_mesh(), made(), NOW)
    assert rows == (PutPass(made()),)
    with pytest.raises(ConflictError, match="ana has a pass that still works"):
        added(registry, made("p2"), NOW)
    registry, _, _ = revoked(registry, "ana", NOW)
    registry, _, _ = added(registry, made("p2"), NOW)
    # By its name the one that works is meant, by its id any.
    registry, _, gone = revoked(registry, "ana", NOW + 1)
    assert gone.id == "p2"
    assert revoked(registry, "p1", NOW + 2)[1] == ()
    assert added(registry, made("p3"), NOW)[0].passes.keys() == {"p1", "p2", "p3"}


def test_an_expired_pass_leaves_its_name() -> None:
    registry, _, _ = added(with_passes(made()), replace(made("p2"), created=NOW + 60), NOW + 60)
    assert len(registry.passes) == 2


def test_a_pass_that_ended_is_forgotten_after_a_week() -> None:
    registry = with_passes(made())
    for days, kept in ((6.9, True), (7.1, False)):
        after, rows, _ = added(registry, made("p2", "bob"), NOW + 60 + days * 86400)
        assert ("p1" in after.passes, DropPass("p1") in rows) == (kept, not kept)


def test_the_number_of_passes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MAX_PASSES", 2)
    monkeypatch.setattr(passes, "MAX_STORED", 3)
    registry = new_mesh()
    for number in range(2):
        registry, _, _ = added(registry, made(f"p{number}", f"name{number}"), NOW)
    with pytest.raises(ConflictError, match="2 passes work already"):
        added(registry, made("p9", "late"), NOW)
    for number in range(2, 9):
        registry, _, _ = revoked(registry, f"p{number - 1}", NOW + number)
        registry, rows, _ = added(registry, made(f"p{number}", f"name{number}"), NOW + number)
        assert len(registry.passes) <= 3
    assert isinstance(rows[0], DropPass)
    assert {"p0", "p8"} <= registry.passes.keys()


def test_only_the_first_browser_binds() -> None:
    registry, rows, until = bound(with_passes(made()), "p1", "first", NOW + 5)
    assert until == NOW + 60
    record = registry.passes["p1"]
    assert (record.session_hash, record.used, rows) == ("first", NOW + 5, (PutPass(record),))
    for registry_, pass_id, now in (
        (registry, "p1", NOW + 6),
        (with_passes(made()), "p1", NOW + 60),
        (with_passes(replace(made(), revoked=NOW)), "p1", NOW),
        (new_mesh(), "p1", NOW),
    ):
        assert bound(registry_, pass_id, "second", now) == (registry_, (), None)


def test_an_unknown_pass_cannot_be_revoked() -> None:
    with pytest.raises(UnknownError, match="there is no pass 'bob'"):
        revoked(with_passes(made()), "bob", NOW)


def test_after_a_restore_no_pass_works() -> None:
    registry, rows, _ = all_revoked(
        with_passes(made(), replace(made("p2"), session_hash="s"), made("p3", "x", -5)), NOW
    )
    assert len(rows) == 3
    assert all(record.ended(NOW) is not None for record in registry.passes.values())
    assert all_revoked(registry, NOW)[1] == ()


def test_a_revoked_pass_ended_when_it_was_revoked_and_an_expired_one_when_it_expired() -> None:
    assert made().ended(NOW + 59) is None
    assert made().ended(NOW + 61) == NOW + 60
    assert replace(made(), revoked=NOW + 5).ended(NOW + 61) == NOW + 5
    assert replace(made(), revoked=NOW + 90).ended(NOW + 91) == NOW + 60
