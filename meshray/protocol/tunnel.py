"""TCP over WebSocket, between `meshray forward` and the coordinator: `/tcp/<node>/<port>`.

    binary message   bytes, in order; how they are divided means nothing
    text EOF         no more bytes follow in this direction (TCP's FIN); the other direction goes on
    close            both directions have ended (1000), or the connection broke off (1011)

Each direction reads only what the other side has taken, so a side that does not read stops the other one.
"""

from __future__ import annotations

EOF = "eof"
#: The largest message, bytes, and the bytes that each side reads at once.
MAX_MESSAGE_BYTES, READ_BYTES = 1024 * 1024, 64 * 1024
#: The header of a refusal, with the code of the error.
ERROR_HEADER = "Meshray-Error"
#: In place of a node's name: the node that runs the Ray head.
HEAD = "head"
