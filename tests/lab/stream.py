"""A TCP connection on which one side sends all the time: the data must continue, whatever happens to the path.

stream = Stream(sender=a, receiver=b, address="10.99.0.3")
mark = time.monotonic()
...
stream.wait_until_it_goes_on(15)
assert stream.longest_silence_s(since=mark) < 15
"""

from __future__ import annotations

import itertools
import sys
import time

from tests.lab.host import Host

PORT = 7300
#: About 5 Mbit/s: enough to fill packets, too little to keep a core busy.
_SEND = """
import socket, sys, time
call = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
call.settimeout(None)
while True:
    call.sendall(bytes(32768))
    time.sleep(0.05)
"""
#: Prints the times at which data arrived.
_RECEIVE = """
import socket, sys, time
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
caller, _ = server.accept()
told = 0.0
while caller.recv(65536):
    if time.monotonic() - told > 0.1:
        told = time.monotonic()
        print(told, flush=True)
"""


class Stream:
    """The connection from a sender to a receiver that listens on this address; there is never a second one."""

    def __init__(self, sender: Host, receiver: Host, address: str, port: int = PORT) -> None:
        self.name = f"{sender.name} → {receiver.name}"
        words = [address, str(port)]
        self._to = receiver
        self._receiver = receiver.popen([sys.executable, "-c", _RECEIVE, *words], name="receive")
        receiver.wait_until(lambda: "ready" in self._receiver.output, 10, "the receiver")
        self._sender = sender.popen([sys.executable, "-c", _SEND, *words], name="send")
        self.wait_until_it_goes_on(10)

    def wait_until_it_goes_on(self, deadline_s: float) -> None:
        """Wait until data arrives that was sent from now on, or shortly before.

        Raises:
            DeadlineError: none came in time.
        """
        now = time.monotonic()
        self._to.wait_until(lambda: self._moments()[-1:] > [now + 0.2], deadline_s, f"data of {self.name}")

    def longest_silence_s(self, since: float) -> float:
        """Return the longest time without data from then to now."""
        moments = [since, *(moment for moment in self._moments() if moment > since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    def end(self) -> None:
        """End the connection."""
        self._sender.stop()
        self._receiver.stop()

    def _moments(self) -> list[float]:
        # The last line may be incomplete.
        return [float(line) for line in self._receiver.output.split("\n")[:-1] if line[:1].isdigit()]
