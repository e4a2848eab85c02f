"""What baseline.py refuses, and how it reads what a machine says of itself."""

import pytest

from baseline import (
    check_memory,
    check_source,
    check_system,
    kernel_settings,
    selected_scheduler,
)
from files import HostError


@pytest.mark.parametrize(
    "text",
    [
        'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nID=debian\n',
        'VERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n',
    ],
)
def test_supported_systems_pass(text: str) -> None:
    check_system(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('ID=debian\nVERSION_ID="11"\n', "debian 11"),
        ('ID="rocky"\nVERSION_ID="9.4"\nID_LIKE="rhel"\n', "rocky 9.4"),
        ("ID=debian\n", "debian without a version"),
        ("", "unknown"),
    ],
)
def test_other_systems_are_refused_by_name(text: str, found: str) -> None:
    with pytest.raises(HostError, match=f"this machine runs {found}"):
        check_system(text)


def test_memory_the_kernel_keeps_is_not_missed_but_half_a_machine_is() -> None:
    check_memory("MemTotal:        7900000 kB\nMemFree: 1 kB\n", 8192)
    check_memory("MemTotal:         470000 kB\n", 512)
    with pytest.raises(HostError, match="3906 MiB of memory, but its memory-mib is 8192"):
        check_memory("MemTotal:        4000000 kB\n", 8192)


def test_the_firewall_is_refused_when_it_would_shut_out_who_applies_it() -> None:
    check_source("192.0.2.9", ["192.0.2.0/24", "10.20.0.1/32"])
    check_source(None, [])
    for outside in ("198.51.100.1", "2001:db8::1"):
        with pytest.raises(HostError, match=f"comes from {outside}"):
            check_source(outside, ["192.0.2.0/24"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[none] mq-deadline\n", "none"),
        ("none [mq-deadline] kyber\n", "mq-deadline"),
        ("none\n", "none"),
    ],
)
def test_the_scheduler_in_force_is_read(text: str, found: str) -> None:
    assert selected_scheduler(text) == found


def test_kernel_settings_are_read_without_comments_and_with_single_spaces() -> None:
    text = "# a = b\n\nnet.ipv4.tcp_rmem = 4096\t131072  16777216\n"
    assert kernel_settings(text) == {"net.ipv4.tcp_rmem": "4096 131072 16777216"}
