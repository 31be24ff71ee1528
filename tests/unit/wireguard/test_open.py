"""Which device is picked, as far as it can be told without trying one."""

from __future__ import annotations

import pytest

from meshray.errors import MeshrayError, UsageError
from meshray.wireguard.open import check_available


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(UsageError, match="MESHRAY_WIREGUARD is 'boringtun'"):
        check_available({"MESHRAY_WIREGUARD": "boringtun"})


def test_a_missing_engine_says_what_to_install() -> None:
    with pytest.raises(MeshrayError) as raised:
        check_available({"MESHRAY_WIREGUARD": "userspace", "PATH": "/nowhere"})
    assert raised.value.code == "no_wireguard"
    assert raised.value.hint == "modprobe wireguard, or: apt-get install wireguard-go"
