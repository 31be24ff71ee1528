"""External input is read, or refused with a MeshrayError: there is never any other exception."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshray.errors import RefusedError, UsageError
from meshray.model.address import Endpoint
from meshray.model.enrol import EnrolAnswer, EnrolRequest
from meshray.model.environment import Environment
from meshray.model.keys import MeshSecret
from meshray.model.meshmap import MapChange, MeshMap
from meshray.model.token import PREFIX, Token
from meshray.protocol.api import PresentedToken
from meshray.protocol.codec import WireError, convert, decode_object, to_json
from meshray.protocol.forms import ChangeForm, MapForm
from tests.unit.hostile import ANY_JSON, mutated
from tests.unit.model.map_changes import diff

from .test_meshmap import MESH, node
from .test_token import TOKEN

MAP = MeshMap(MESH, 7, {f"n{number}": node(number) for number in range(3)})
LATER = MeshMap(MESH, 8, {**MAP.nodes, "n1": node(1, online=True), "n3": node(3)})


def sealed(payload: bytes) -> str:
    """Return a token with a correct checksum, whatever it contains."""
    checksum = hashlib.sha256(payload).digest()[:4]
    return PREFIX + base64.urlsafe_b64encode(checksum + payload).rstrip(b"=").decode()


def fields(token: Token) -> list[object]:
    return [token.mesh_id, [str(e) for e in token.coordinators], token.fingerprint.hex(), token.token_id, token.secret]


@given(st.binary(max_size=300) | mutated(fields(TOKEN)).map(lambda value: json.dumps(value).encode()))
@example(b"[" * 5000)
@example(b'["\\ud800", ["a:1"], "' + b"00" * 32 + b'", "b", "c"]')
@example(b"[" + b"9" * 5000 + b"]")
def test_a_token_is_read_or_damaged_and_what_is_read_is_that_token(payload: bytes) -> None:
    try:
        token = Token.parse(sealed(payload))
    except RefusedError as error:
        assert error.code == "token_damaged"
        return
    assert Token.parse(token.encode()) == token


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="replace")))
def test_bytes_are_a_json_object_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert isinstance(decode_object(data), dict)


@given(st.text(st.characters(), max_size=60) | st.from_regex(r"\[?[0-9a-f:.%]{0,30}\]?:\d{0,6}", fullmatch=True))
def test_an_endpoint_is_read_back_as_written(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except UsageError:
        return
    assert Endpoint.parse(str(endpoint)) == endpoint


@given(mutated(to_json(MAP.form())))
def test_a_map_is_whole_or_refused(value: Any) -> None:
    if not isinstance(value, dict):
        return
    try:
        mesh_map = MeshMap.of(convert(value, MapForm))
    except (WireError, UsageError):
        return
    assert_sound(mesh_map)


@given(mutated(to_json(diff(MAP, LATER).form())))
def test_a_change_leads_to_a_sound_map_or_nowhere(value: Any) -> None:
    before = to_json(MAP.form())
    if not isinstance(value, dict):
        return
    try:
        after = MAP.apply(MapChange.of(convert(value, ChangeForm)))
    except (WireError, UsageError):
        after = MAP
    assert to_json(MAP.form()) == before
    assert_sound(after)


def assert_sound(mesh_map: MeshMap) -> None:
    """Check that an agent's use of the map works for every node in it."""
    nodes = list(mesh_map.nodes.values())
    for one in nodes:
        assert one.ip in mesh_map.mesh.network.node_half
        assert mesh_map.mesh.network.probe_address(one.ip) in mesh_map.mesh.network.cidr
        assert mesh_map.nodes[one.id] is one
    for unique in ("ip", "public_key", "name"):
        assert len({getattr(one, unique) for one in nodes}) == len(nodes), unique
    assert MeshMap.of(convert(json.loads(json.dumps(to_json(mesh_map.form()))), MapForm)) == mesh_map


@pytest.mark.parametrize(
    "form",
    [
        EnrolRequest.from_json,
        EnrolAnswer.from_json,
        Environment.from_json,
        lambda value: convert(value, PresentedToken),
    ],
)
@given(data=st.data())
def test_an_enrolment_is_read_or_refused(form: Any, data: st.DataObject) -> None:
    request = EnrolRequest(
        "m1",
        "t1",
        "secret",
        node(1).name,
        True,
        node(1).public_key,
        node(1).versions,
        True,
        endpoints=node(0).endpoints,
    )
    answer = EnrolAnswer("n1", "credential", MeshSecret(bytes(32)), "ray", MAP)
    valid = to_json(request.form()) if form == EnrolRequest.from_json else to_json(answer.form())
    value = data.draw(mutated(valid) | st.dictionaries(st.sampled_from(sorted(valid)), ANY_JSON))
    if not isinstance(value, dict):
        return
    try:
        read = form(value)
    except (WireError, UsageError):
        return
    json.dumps(to_json(read if isinstance(read, PresentedToken) else read.form())).encode()
