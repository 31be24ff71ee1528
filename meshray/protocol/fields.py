"""The fields of messages: each type has its bounds and, for the coordinator's description, what it means.

The bounds are checked when a message is decoded. A ``pattern`` only describes: the value's own type checks it and
raises an error with its own code.
"""

from __future__ import annotations

#: Longer lists or maps than this have no meaning in any message.
MAX_ITEMS = 64
#: The longest text inside a list or map.
MAX_ITEM_CHARACTERS = 512
#: The most characters of an endpoint.
MAX_ENDPOINT = 300
#: The largest revision that fits SQLite and JSON alike.
MAX_REVISION = 2**53 - 1
#: The largest counter or epoch that JSON holds everywhere.
MAX_COUNTER = 2**53 - 1
#: The epoch of the secrets with which a mesh begins; nodes that report none hold this one.
FIRST_EPOCH = 1
MAX_EPOCH = 2**31 - 1
#: Below, a busy machine would be called dead; above, nobody would wait for it.
MIN_PATIENCE_S, MAX_PATIENCE_S = 20, 3600
#: Seconds for which a node may be silent before Ray calls it dead, unless ``init --patience`` says otherwise.
DEFAULT_PATIENCE_S = 120
#: Nodes that the lock has removed; more than a mesh has addresses make no sense.
MOST_REMOVED = 65536
#: Characters of a mark, of a ticket (the labels are most of it), and of Ray's token.
LONGEST_MARK, LONGEST_TICKET, LONGEST_RAY_TOKEN = 512, 6000, 256
#: Characters of a signature in base64.
SIGNATURE_CHARACTERS = 88
#: Ray runs as a user, who may not open ports below; 0 would let Ray choose a port that nobody else knows.
LOWEST_PORT, HIGHEST_PORT = 1024, 65535
#: Characters of all labels of a node together, keys and values, at enrolment.
LONGEST_LABELS = 4096
