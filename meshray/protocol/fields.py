"""The fields of messages: each type has its limits and, for the coordinator's description, its meaning.

The limits are checked when a message is decoded. A ``pattern`` only describes: the value's own type checks it and
raises an error with its own code.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

#: Longer lists or maps than this have no meaning in any message.
MAX_ITEMS = 64
#: The longest text inside a list or map.
MAX_ITEM_CHARACTERS = 512
#: The most characters of an endpoint.
MAX_ENDPOINT = 300
#: The largest revision that fits both SQLite and JSON.
MAX_REVISION = 2**53 - 1
#: The largest counter or epoch that JSON represents exactly everywhere.
MAX_COUNTER = 2**53 - 1
#: The first epoch of a mesh's secrets; nodes that report none hold this one.
FIRST_EPOCH = 1
MAX_EPOCH = 2**31 - 1
#: Below this, a busy machine would count as dead; above, users would not wait for it.
MIN_PATIENCE_S, MAX_PATIENCE_S = 20, 3600
#: The seconds that a node may be silent before Ray declares it dead, unless ``init --patience`` sets others.
DEFAULT_PATIENCE_S = 120
#: Nodes that the lock has removed; more than a mesh has addresses are meaningless.
MOST_REMOVED = 65536
#: Characters of a mark, of a ticket (the labels are most of it), and of Ray's token.
LONGEST_MARK, LONGEST_TICKET, LONGEST_RAY_TOKEN = 512, 6000, 256
#: Characters of a signature in base64.
SIGNATURE_CHARACTERS = 88
#: Ray runs as a user, who may not open lower ports; 0 would let Ray choose a port that no other node knows.
LOWEST_PORT, HIGHEST_PORT = 1024, 65535
#: Characters of all labels of a node together, keys and values, at enrolment.
LONGEST_LABELS = 4096

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#: 32 bytes in base64: the last character holds four bits and two zeros.
_KEY = "^(?:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=)$"
_IPV4 = r"[0-9]{1,3}(\.[0-9]{1,3}){3}"

#: Names of things that the coordinator created: nodes, tokens, meshes; versions of programs.
Text64 = Annotated[str, Meta(max_length=64)]
#: A word of the protocol: an operation, a question's id.
Word = Annotated[str, Meta(max_length=32)]
Item = Annotated[str, Meta(max_length=MAX_ITEM_CHARACTERS)]
Items = Annotated[tuple[Item, ...], Meta(max_length=MAX_ITEMS)]
TextMap = Annotated[dict[Item, Item], Meta(max_length=MAX_ITEMS)]
Labels = Annotated[
    TextMap,
    Meta(description=f"at enrolment, keys and values have at most {LONGEST_LABELS} characters in total"),
]
Faults = Annotated[TextMap, Meta(description="its faults that other nodes must know: detail by code")]
#: An incoming node name; it is converted to lower case.
Name = Annotated[
    str,
    Meta(max_length=63, description="a host-name label (RFC 1123)", extra_json_schema={"pattern": f"^(?:{_LABEL})$"}),
]
OwnName = Annotated[str, Meta(max_length=63, extra_json_schema={"pattern": f"^(?:{_LABEL.replace('A-Z', '')})$"})]
MeshName = Annotated[str, Meta(max_length=63)]
Key = Annotated[str, Meta(max_length=44, description="WireGuard's form of a key", extra_json_schema={"pattern": _KEY})]
SecretKey = Annotated[Key, Meta(extra_json_schema={"format": "password"})]
Signature = Annotated[
    str,
    Meta(
        max_length=SIGNATURE_CHARACTERS,
        description="Ed25519, base64",
        extra_json_schema={"pattern": "^(?:[A-Za-z0-9+/]{86}==)$"},
    ),
]
Counter = Annotated[int, Meta(ge=0, le=MAX_COUNTER)]
#: Unix seconds.
Seconds = Annotated[float, Meta(ge=0, le=MAX_COUNTER)]
Revision = Annotated[int, Meta(ge=0, le=MAX_REVISION)]
Epoch = Annotated[int, Meta(ge=FIRST_EPOCH, le=MAX_EPOCH)]
Address = Annotated[
    str, Meta(max_length=15, description="IPv4, in the overlay", extra_json_schema={"pattern": f"^(?:{_IPV4})$"})
]
Network = Annotated[str, Meta(max_length=18, extra_json_schema={"pattern": f"^(?:{_IPV4}/[0-9]{{1,2}})$"})]
#: The location of a server.
EndpointText = Annotated[
    str,
    Meta(
        max_length=MAX_ENDPOINT,
        description="HOST:PORT or [IPv6]:PORT",
        extra_json_schema={"pattern": "^(?:.*:[0-9]{1,5})$"},
    ),
]
#: Endpoints of a node in the map; invalid ones are ignored.
NodeEndpoints = Annotated[
    tuple[
        Annotated[
            Item, Meta(description="HOST:PORT or [IPv6]:PORT", extra_json_schema={"pattern": "^(?:.*:[0-9]{1,5})$"})
        ],
        ...,
    ],
    Meta(max_length=MAX_ITEMS),
]
#: Unknown roles are ignored.
NodeRoles = Annotated[
    tuple[Annotated[Item, Meta(extra_json_schema={"enum": ["coordinator", "head", "hub", "static", "worker"]})], ...],
    Meta(max_length=MAX_ITEMS),
]
EndpointTexts = Annotated[tuple[EndpointText, ...], Meta(max_length=MAX_ITEMS)]
#: Chosen ports by name; unknown names are ignored, see `meshray.model.ray_ports`.
Ports = Annotated[
    dict[str, Any],
    Meta(
        extra_json_schema={"additionalProperties": {"type": "integer", "minimum": LOWEST_PORT, "maximum": HIGHEST_PORT}}
    ),
]
#: A TCP port.
Port = Annotated[int, Meta(ge=1, le=HIGHEST_PORT)]
Mark = Annotated[
    str,
    Meta(max_length=LONGEST_MARK, description="identifies this moment to the coordinator; nodes return it"),
]
TicketText = Annotated[
    str,
    Meta(
        max_length=LONGEST_TICKET,
        description="identifies the node to a coordinator restored from a copy; empty: none",
    ),
]
