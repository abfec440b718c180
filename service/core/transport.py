"""Whether others could read or change the traffic with a server on the internet: the boot warns, and never refuses."""

import asyncio
import logging
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, Literal

Weakness = Literal["plain", "unverified"]
"""`plain`: the connection may have no TLS; `unverified`: its TLS takes any server for the right one."""

RESOLVE_TIMEOUT_S: Final = 5.0
WHAT: Final = {
    "plain": "may be reached without TLS: whoever is on the way can read and change what is said",
    "unverified": "is reached by TLS that takes any server for the right one",
}
INSTEAD: Final = {
    "DATABASE_URL": "Say sslmode=verify-full, with sslrootcert=system or the file of the vendor's authority",
    "REDIS_URL": "Begin it with rediss://, with ssl_ca_certs=FILE where the vendor has an authority of its own",
}

log = logging.getLogger("callboard.boot")


async def warn_if_exposed(name: str, hosts: Iterable[str], weakness: Weakness | None) -> None:
    """Logs one sentence where an address, of the variable `name`, has a weakness and a host on the internet."""
    if weakness is None:
        return
    for host in hosts:
        if await is_public(host):
            log.warning(
                "%s names a server on the internet, which %s. %s (deploy/managed-servers.md).",
                *(name, WHAT[weakness], INSTEAD[name]),
            )
            return


async def is_public(host: str) -> bool:
    """Whether `host` has an address that is neither of this machine nor of a private network; unknown is no."""
    if not host or host.startswith("/"):  # a folder of sockets
        return False
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return False
    return any(ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in infos)
