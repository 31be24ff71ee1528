from __future__ import annotations

import errno
import os

import pytest

from meshray.runtime.rootless import holder
from meshray.runtime.rootless.holder import hosts_text, resolver_text
from meshray.runtime.rootless.internet import Helper, find_helper
from meshray.runtime.rootless.permission_probe import INTERFACE, MOUNTS, NETWORK, USER, Missing, refusal

WITH_ROOT = "sudo /opt/meshray join TOKEN"
PASTA = Helper("/usr/bin/pasta", "169.254.1.1")


@pytest.mark.parametrize(
    ("missing", "settings", "because", "fix"),
    [
        (Missing(USER, errno.ENOSPC), {"user.max_user_namespaces": "0"}, "user.max_user_namespaces is 0", "=15000"),
        (Missing(USER, errno.EPERM), {"kernel.unprivileged_userns_clone": "0"}, "clone is 0", "clone=1"),
        (
            Missing(NETWORK, errno.EPERM),
            {"kernel.apparmor_restrict_unprivileged_userns": "1"},
            "kernel.apparmor_restrict_unprivileged_userns is 1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (Missing(NETWORK, errno.ENOSPC), {}, "the limit is reached", "more network namespaces"),
        (Missing(MOUNTS, errno.EPERM), {}, "operation not permitted", "seccomp profile"),
        (Missing(INTERFACE, errno.EACCES), {}, "permission denied", "chmod 0666 /dev/net/tun"),
        (Missing(INTERFACE, errno.ENOENT), {}, "is missing", "modprobe tun"),
    ],
)
def test_a_refusal_names_the_missing_level_the_reason_and_the_next_step(
    missing: Missing, settings: dict[str, str], because: str, fix: str
) -> None:
    error = refusal((missing,), lambda name: settings.get(name, ""), WITH_ROOT)
    assert f"{missing.what} (" in error.message
    assert because in error.message
    assert "ask the administrator" in error.hint
    assert fix in error.hint
    assert error.hint.endswith(WITH_ROOT)
    assert (error.exit_code, error.code) == (1, "no_tun" if missing.what == INTERFACE else "no_namespaces")


def test_one_message_lists_everything_that_is_missing() -> None:
    found = (Missing(NETWORK, errno.ENOSPC), Missing(INTERFACE, errno.EACCES))
    error = refusal(found, lambda name: "0" if name == "user.max_net_namespaces" else "", WITH_ROOT)
    assert "network namespaces (user.max_net_namespaces is 0), /dev/net/tun (permission denied)" in error.message
    assert error.code == "no_namespaces"


def test_internet_access_admits_no_inbound_traffic() -> None:
    words = PASTA.command(4711)
    for option in ("-t", "-u", "-T", "-U"):
        assert words[words.index(option) + 1] == "none"
    assert "--no-map-gw" in words
    assert words[-1] == "4711"
    slirp = Helper("/usr/bin/slirp4netns", "10.0.2.3").command(4711)
    assert "--disable-host-loopback" in slirp
    assert slirp[-2:] == ["4711", "tap0"]


def test_with_wireguard_inside_only_its_port_is_forwarded() -> None:
    words = PASTA.command(4711, 51888)
    assert words[words.index("-u") + 1] == "51888"
    assert [words[words.index(option) + 1] for option in ("-t", "-T", "-U")] == ["none"] * 3
    assert PASTA.command(4711, 0) == PASTA.command(4711)


def test_without_an_installed_helper_there_is_none() -> None:
    assert find_helper({"PATH": "/nonexistent"}) is None


def test_the_resolver_inside_answers_at_once() -> None:
    assert "nameserver 169.254.1.1\n" in resolver_text(PASTA)
    assert "nameserver 127.0.0.1\n" in resolver_text(None)


@pytest.mark.parametrize(
    ("hosts", "is_known"),
    [("127.0.0.1 localhost\n127.0.1.1 login\n", True), ("127.0.0.1 localhost # login\n", False), ("", False)],
)
def test_the_machines_own_name_is_in_the_hosts_file_inside(hosts: str, is_known: bool) -> None:
    text = hosts_text(hosts, "login")
    assert text.endswith("127.0.1.1 login\n")
    assert (text == hosts) == is_known
    assert hosts_text(text, "login") == text


@pytest.mark.parametrize(
    ("told", "pid"),
    [("4711\nready\n", 4711), ("ready\n4711\n", 4711), ("4711\n", 0), ("ready\n", 0), ("", 0)],
)
def test_the_first_process_may_be_ready_before_its_parent_knows_its_pid(told: str, pid: int) -> None:
    end, begin = os.pipe()
    os.write(begin, told.encode())
    os.close(begin)
    assert holder._read_pid(end) == pid
