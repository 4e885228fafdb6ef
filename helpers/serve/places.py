"""Where a door runs, and what is different there: on this machine, or on the internet."""

import os
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a door runs, and what customers reach it by.

    Args:
        address: on which it listens; ``"0.0.0.0"`` is every network of the machine.
        port: on which it listens.
        host: name or IP address by which customers reach it.
        public_port: the port that they use, where something before the door maps it.
        tls: whether the door itself speaks HTTPS.
        acme: whether it answers the challenges of a certificate authority on port 80.
        user: as whom nginx works when root starts it; ``""`` where nobody starts it as root.
        connections: open requests from one address; ``None`` where a proxy stands before the door,
            so that all customers seem to come from one.
    """

    address: str = "127.0.0.1"
    port: int = 8443
    host: str = "127.0.0.1"
    public_port: int | None = None
    tls: bool = True
    acme: bool = False
    user: str = field(default_factory=lambda: "" if os.geteuid() else "root")
    connections: int | None = 1024


def always_on(domain: str) -> Place:
    """(a) A small machine of one's own with a domain; a tunnel leads from it to the GPU."""
    return Place(address="0.0.0.0", port=443, host=domain, acme=True, user="")  # noqa: S104


def rented(host: str, public_port: int, port: int = 8443) -> Place:
    """(b) The rented machine itself, with one open port, mapped by the marketplace."""
    everywhere = "0.0.0.0"  # noqa: S104  the container's network
    return Place(address=everywhere, port=port, host=host, public_port=public_port, user="www-data")


def runpod(pod: str, port: int = 8888) -> Place:
    """(c) A RunPod pod behind RunPod's HTTPS proxy, which ends TLS."""
    host = f"{pod}-{port}.proxy.runpod.net"
    return Place(
        address="0.0.0.0", port=port, host=host, public_port=443, tls=False,  # noqa: S104
        user="www-data", connections=None,
    )  # fmt: skip
