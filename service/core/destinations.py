"""Where `run.web` may post to: the Internet, and what of the inside CALLBOARD_WEB_ALLOW names."""

import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

Address = IPv4Address | IPv6Address

NAME: Final = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
PORTS: Final = {"http": 80, "https": 443}
NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an address of version 4
UNICAST: Final = IPv6Network("2000::/3")  # IANA assigns addresses of the Internet from here only
# Python holds some of the first for global, Oracle's metadata among them; the second is answered in Azure's machines.
NOT_GLOBAL: Final = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"))
ON_THIS_MACHINE: Final = "127.0.0.0/8,::1"


class Allowed(Struct, frozen=True):
    """Of the inside: hosts by name, `.suffix` of names, networks, and hosts with one port."""

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    origins: frozenset[tuple[str, int]] = frozenset()

    def host(self, host: str, port: int) -> bool:
        """Whether it may be posted to, whatever its name leads to."""
        name = host.lower().rstrip(".")
        return name in self.names or name.endswith(self.suffixes) or (name, port) in self.origins

    def address(self, text: str) -> bool:
        address = ip_address(text.partition("%")[0])
        forms = tuple(_forms(address))
        return not _is_inside(forms[-1]) or any(form in network for form in forms for network in self.networks)


def allowed(entries: str, *addresses: str) -> Allowed:
    """Reads the `entries` of CALLBOARD_WEB_ALLOW, and adds the host and port of each of `addresses` that is set.

    Raises ValueError with one sentence.
    """
    names, networks = [], []
    for entry in filter(None, (part.strip().lower() for part in entries.split(","))):
        try:
            networks.append(ip_network(entry))
        except ValueError:
            if not NAME.fullmatch(entry) or literal(entry.removeprefix("*.")) is not None:
                fault = "neither a host's name, nor *.suffix, nor a network such as 10.0.0.0/8"
                raise ValueError(f"{entry[:60]!r} is {fault}") from None
            names.append(entry)
    urls = [urlsplit(address) for address in addresses if address]
    return Allowed(
        frozenset(name for name in names if not name.startswith("*")),
        tuple(name[1:] for name in names if name.startswith("*")),
        tuple(networks),
        frozenset((url.hostname or "", url.port or PORTS[url.scheme]) for url in urls),
    )


def literal(host: str) -> str | None:
    """The address where a host is one, in any spelling that a resolver takes for one: `127.1`, `0x7f000001`."""
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        try:
            return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
        except (OSError, UnicodeError, ValueError):
            return None


def _forms(address: Address) -> Iterator[Address]:
    """It, and last the address of version 4 that it stands for, where it stands for one."""
    yield address
    if isinstance(address, IPv6Address):
        held = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            held = IPv4Address(int(address) & 0xFFFF_FFFF)
        if held is not None:
            yield held


def _is_inside(address: Address) -> bool:
    """Whether no stranger's event may lead there: loopback, private, link-local, multicast, all that is not global."""
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return True
    special = address.is_multicast or address.is_reserved or any(address in network for network in NOT_GLOBAL)
    return special or not address.is_global
