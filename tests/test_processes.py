"""What the tests themselves stand on."""

from __future__ import annotations

from processes import free_ports


def test_no_port_is_given_twice() -> None:
    """Who was given one may not listen on it yet: a member's two servers once got the same."""
    ports = [port for _ in range(300) for port in free_ports(1)]
    assert len(set(ports)) == len(ports)
