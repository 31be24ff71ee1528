"""The closing line of the doctor counts what was checked, and names what was not."""

from __future__ import annotations

from tests.doctor_count import BROKEN, CARRIED_OUT, HEALTHY, NAMED, TOOK, WELL, DoctorCount


def counted(*properties: tuple[str, str]) -> DoctorCount:
    count = DoctorCount()
    count.note(properties)
    return count


def test_an_unreported_fault_counts_as_missed() -> None:
    count = counted((BROKEN, "host/a"), (NAMED, "host/a"), (BROKEN, "ray/b"))
    assert str(count) == "1 of 2 faults named by the first failing check (host 1)"
    assert count.missed == {"ray/b"}


def test_a_past_failure_in_a_healthy_mesh_is_reported() -> None:
    count = counted((HEALTHY, "two hubs"), (WELL, "two hubs"), (HEALTHY, "ufw"))
    assert str(count) == "failing checks on 1 of 2 healthy meshes: ufw"
    assert count.missed == {"ufw"}


def test_several_tests_make_one_line() -> None:
    count = counted((BROKEN, "host/a"), (NAMED, "host/a"))
    count.note([(BROKEN, "path/a"), (NAMED, "path/a"), (HEALTHY, "two hubs"), (WELL, "two hubs")])
    count.note([(TOOK, "ten nodes in 3.1 s")])
    answer = "2 of 2 faults named by the first failing check (host 1, path 1); no failing check on 1 healthy mesh"
    assert str(count) == f"{answer}; ten nodes in 3.1 s"
    assert not count.missed


def test_faults_that_the_printed_commands_repaired_are_counted() -> None:
    count = counted((BROKEN, "host/a"), (NAMED, "host/a"), (CARRIED_OUT, "host/a"), (BROKEN, "host/b"))
    assert "; 1 of them repaired by the printed commands" in str(count)
    assert count.missed == {"host/b"}


def test_records_of_other_tests_are_ignored() -> None:
    assert not counted(("seconds", "3"))
