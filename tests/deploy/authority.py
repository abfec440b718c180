"""A stand-in of Let's Encrypt where the machine looks for it: names, and Caddy's own ACME server, on the client's side.

`python -m tests.deploy.authority ADDRESS NAME=ADDRESS …` answers for these names, on port 53.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from tests.deploy.host import ADDRESS, CLIENT_ADDRESS, SITE, THERE, Host, until
from tests.processes import ROOT

LETS_ENCRYPT: Final = "acme-v02.api.letsencrypt.org"
DIRECTORY: Final = f"https://{CLIENT_ADDRESS}/acme/local/directory"  # by another name: an authority of somebody's own
CADDYFILE: Final = f"""{{
	admin off
	auto_https disable_redirects
	skip_install_trust
}}
{LETS_ENCRYPT}, {CLIENT_ADDRESS} {{
	tls internal
	log
	rewrite /directory /acme/local/directory
	acme_server
}}
"""
# `ip netns exec` has mounts of its own.
START: Final = "mount --bind resolv.conf /etc/resolv.conf && exec caddy run --adapter caddyfile --config Caddyfile"
A: Final = b"\0\1"
NO_SUCH_NAME: Final = b"\x81\x83"
FOUND: Final = b"\x81\x80"


class Authority(Struct, frozen=True):
    folder: Path
    caddy: "subprocess.Popen[bytes]"

    @property
    def root(self) -> Path:
        return self.folder / "caddy/pki/authorities/local/root.crt"

    def orders(self) -> int:
        return (self.folder / "log").read_text().count('"uri":"/acme/local/new-order"')

    def goes_away(self) -> None:
        self.caddy.kill()
        self.caddy.wait(30)


@contextmanager
def authority(host: Host, folder: Path) -> Iterator[Authority]:
    """Asked for names by the machine, which trusts it as it would one of a company's own."""
    (folder / "Caddyfile").write_text(CADDYFILE)
    (folder / "resolv.conf").write_text(f"nameserver {CLIENT_ADDRESS}\n")
    names = [f"{LETS_ENCRYPT}={CLIENT_ADDRESS}", f"{SITE}={ADDRESS}"]
    resolver = subprocess.Popen(
        [*host.in_client, sys.executable, "-m", "tests.deploy.authority", CLIENT_ADDRESS, *names], cwd=ROOT
    )
    with (folder / "log").open("wb") as log:
        caddy = subprocess.Popen(
            [*host.in_client, "sh", "-c", START], cwd=folder, stdout=log, stderr=log,
            env={**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        )  # fmt: skip
    made = Authority(folder, caddy)
    try:
        until(made.root.exists, 30)
        host.ssh(f"mkdir -p {THERE}/certs")
        shutil.copy(made.root, host.root / THERE.strip("/") / "certs/authority.crt")
        shutil.copy(folder / "resolv.conf", host.root / "etc")
        yield made
    finally:
        for each in (caddy, resolver):
            each.kill()
            each.wait(30)


def answer(query: bytes, names: Mapping[bytes, str]) -> bytes:
    """To one question, of which only the kind A has an answer."""
    end = query.index(b"\0", 12) + 5
    name, kind = query[12 : end - 4], query[end - 4 : end - 2]
    address = names.get(name.lower()) if kind == A else None
    found = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(address) if address else b""
    status = FOUND if name.lower() in names else NO_SUCH_NAME
    return query[:2] + status + b"\0\1\0" + bytes([bool(found)]) + b"\0\0\0\0" + query[12:end] + found


def wire(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def main(listens: str, *given: str) -> None:
    names = {wire(name): address for name, _, address in (each.partition("=") for each in given)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((listens, 53))
        while True:
            query, client = server.recvfrom(4096)
            server.sendto(answer(query, names), client)


if __name__ == "__main__":
    main(*sys.argv[1:])
