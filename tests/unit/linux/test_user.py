"""Users by name and by number."""

from __future__ import annotations

import pytest

from meshray.errors import UsageError
from meshray.linux.user import User


@pytest.mark.parametrize("uid", [0, 1000, 1000650000, 2**32 - 2])
def test_every_uid_names_a_user(uid: int) -> None:
    """OpenShift gives namespaces uids of ten digits, which no user database has."""
    assert User.named(str(uid)).uid == uid


@pytest.mark.parametrize("text", ["", "no such user", "-1", "4294967295", "4294967296", "9" * 5000, "\u0661"])
def test_what_names_no_user_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        User.named(text)
    assert refused.value.code == "no_such_user"
