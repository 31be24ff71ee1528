"""Why a node's Ray ended: phrases that the supervisor writes and the doctor recognises."""

from __future__ import annotations

#: In the reason of an end that followed such a kill.
OUT_OF_MEMORY = "the kernel killed a process for lack of memory"
