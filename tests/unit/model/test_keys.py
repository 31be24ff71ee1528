"""Keys: both sides compute the same preshared key, and no secret is shown."""

import pytest

from meshray.errors import UsageError
from meshray.model.keys import MeshSecret, PrivateKey, PublicKey

# Made with `wg genkey` and `wg pubkey`.
WG_PRIVATE = "uIEYUleMdI/ZgbZlB01LHCKMQz3nqxxHy5pZ6OXX1Wg="
WG_PUBLIC = "T7kJS0XItaFNVYlbckm/vKTunzYukf01kaWzFsp+Gkk="


def test_the_public_half_is_the_one_that_wg_computes() -> None:
    assert str(PrivateKey.parse(WG_PRIVATE).public()) == WG_PUBLIC


def test_a_new_key_is_clamped_as_wg_does() -> None:
    raw = PrivateKey.generate().raw
    assert raw[0] & 7 == 0
    assert raw[31] & 0xC0 == 0x40


def test_the_pair_derives_one_key_and_others_another() -> None:
    secret = MeshSecret.generate()
    a, b, c = (PrivateKey.generate().public() for _ in range(3))
    assert secret.preshared_key(a, b) == secret.preshared_key(b, a)
    assert secret.preshared_key(a, b) != secret.preshared_key(a, c)
    assert MeshSecret.generate().preshared_key(a, b) != secret.preshared_key(a, b)


@pytest.mark.parametrize("text", ["", "AAAA", "x" * 44, "ä" * 44, "A" * 43 + "!"])
def test_invalid_keys_are_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        PublicKey.parse(text)


def test_secrets_do_not_show_themselves() -> None:
    private = PrivateKey.generate()
    for shown in (repr(private), str(private), f"{private}", str([private])):
        assert private.reveal() not in shown
        assert private.hex not in shown
