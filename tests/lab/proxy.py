"""A real HTTP proxy with a password on one host, as in companies: tinyproxy, which supports CONNECT.

proxy = Proxy(gateway, "192.168.1.1")
proxy.start()
host.environment.update(proxy.environment)
"""

from __future__ import annotations

from tests.lab.host import Host, HostProcess

PORT = 8888
USER, PASSWORD = "ada", "lovelace"
#: Web servers with TLS only, as proxies are usually configured.
_CONFIGURATION = f"""
Port {PORT}
Listen {{address}}
Timeout 600
MaxClients 20
BasicAuth {USER} {{password}}
ConnectPort 443
LogLevel Connect
PidFile "/run/tinyproxy.pid"
"""


class Proxy:
    """A proxy that runs on a host until the host ends, or it is stopped; it can be started again.

    Attributes:
        environment: the variables with which clients find it.
    """

    def __init__(self, host: Host, address: str) -> None:
        self._host = host
        self._address = address
        self._process: HostProcess | None = None
        url = f"http://{USER}:{PASSWORD}@{address}:{PORT}"
        self.environment = {"HTTPS_PROXY": url, "https_proxy": url}

    def start(self, password: str = PASSWORD) -> None:
        """Start the proxy; return when it answers."""
        text = _CONFIGURATION.format(address=self._address, password=password)
        self._host.path("/etc/proxy.conf").write_text(text)
        self._process = self._host.popen(["tinyproxy", "-d", "-c", "/etc/proxy.conf"])
        self._host.wait_until(
            lambda: f"{self._address}:{PORT}" in self._host.run(["ss", "-tln"]).stdout, 10, "the proxy"
        )

    def stop(self) -> None:
        """Stop the proxy; its clients' connections end."""
        assert self._process
        self._process.stop()
        self._process = None
