"""One TCP connection with ten messages per second, which must survive whatever happens to the network.

talk = Conversation(server=office, client=home, address="10.99.0.3")
talk.wait_until_it_goes_on(10)
mark = time.monotonic()
...
assert talk.longest_silence_s(since=mark) < 5
assert not talk.is_over
"""

from __future__ import annotations

import itertools
import sys
import time

from tests.lab.host import Host

PORT = 7100
_SERVE = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
caller, _ = server.accept()
server.close()
while said := caller.recv(100):
    caller.sendall(said)
"""
#: Prints the time of every answer.
_TALK = """
import socket, sys, time
call = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
call.settimeout(None)
call.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while True:
    call.sendall(b"hello\\n")
    if not call.recv(100):
        sys.exit("the other side has closed the connection")
    print(time.monotonic(), flush=True)
    time.sleep(0.1)
"""


class Conversation:
    """The connection of a client and a server that listens on this address; there is never a second one."""

    def __init__(self, server: Host, client: Host, address: str, port: int = PORT) -> None:
        self.name = f"{client.name} → {server.name}"
        words = [address, str(port)]
        self._client = client
        self._server = server.popen([sys.executable, "-c", _SERVE, *words], name="listen")
        server.wait_until(lambda: "ready" in self._server.output, 10, "the server")
        self._talk = client.popen([sys.executable, "-c", _TALK, *words], name="talk")
        self.wait_until_it_goes_on(10)

    @property
    def is_over(self) -> bool:
        """Whether the connection has broken."""
        return self._server.returncode is not None or self._talk.returncode is not None

    def wait_until_it_goes_on(self, deadline_s: float) -> None:
        """Wait for an answer to a message from now on.

        Raises:
            DeadlineError: none came in time.
        """
        now = time.monotonic()
        self._client.wait_until(
            lambda: self.is_over or self._answers()[-1:] > [now], deadline_s, f"word of {self.name}"
        )
        assert not self.is_over, f"{self.name}: the connection has broken: {self._talk.output[-200:]}"

    def longest_silence_s(self, since: float) -> float:
        """Return the longest time without an answer from then to now, by the monotonic clock."""
        moments = [since, *(moment for moment in self._answers() if moment > since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    def end(self) -> None:
        """End the connection."""
        self._talk.stop()
        self._server.stop()

    def _answers(self) -> list[float]:
        # The last line may be incomplete.
        return [float(line) for line in self._talk.output.split("\n")[:-1] if line[:1].isdigit()]
