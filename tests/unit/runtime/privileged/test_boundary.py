"""A part that could not be examined is not reported as weak."""

from __future__ import annotations

import subprocess

import pytest

from meshray.runtime.privileged import boundary


def test_only_findings_are_reported_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "is_root", lambda: True)
    monkeypatch.setattr(boundary, "is_container", lambda: False)
    monkeypatch.setattr(boundary, "_found", [])
    answers = [
        subprocess.CompletedProcess([], 1, "", "MemoryError"),
        subprocess.TimeoutExpired("look", 60),
        subprocess.CompletedProcess([], 1, "", "python: … (ModuleNotFoundError: No module named 'meshray')"),
    ]

    def run(*lines: object, **options: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    assert boundary.untrusted_part() == ""
    assert boundary.untrusted_part() == ""
    assert boundary.untrusted_part().endswith("meshray")
    assert boundary.untrusted_part().endswith("meshray")
    assert answers == []
