"""A certificate for a domain: TLS=auto from the first deployment on, then TLS=acme, then with the authority away."""

import re
import shlex
from typing import Final

import pytest

from tests.deploy.authority import DIRECTORY, Authority
from tests.deploy.host import ADDRESS, SITE, THERE, Host, run, until
from tests.deploy.product import Product, configure, key, outside

pytestmark = pytest.mark.host

# What host.sh has Docker compare, so that its next deployment leaves the proxy as it is.
APPLY: Final = (
    f"cd {THERE} && CADDYFILE=./Caddyfile CADDYFILE_SUM=$(cksum < Caddyfile) "
    "docker compose --progress quiet --env-file settings up -d --no-deps proxy"
)


def test_a_domain_gets_its_certificate(host: Host, product: Product, authority: Authority) -> None:
    first = certificate(host)
    assert [authority.orders(), served(host, authority)] == [1, "200"]
    told = outside(host, "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", f"http://{SITE}/types")
    assert told == f"308 https://{SITE}/types"
    host.ssh("docker restart callboard-proxy-1")
    until(lambda: served(host, authority) == "200", 30)
    assert [certificate(host), authority.orders()] == [first, 1]

    configure(host, TLS="acme", ACME_CA=DIRECTORY)
    host.ssh(APPLY)
    until(lambda: served(host, authority) == "200" and certificate(host) != first, 30)
    second = certificate(host)
    authority.goes_away()
    product.make("deploy")
    assert [certificate(host), served(host, authority)] == [second, "200"]

    configure(host, TLS="internal")
    host.ssh(APPLY)
    until(lambda: served(host, authority) == "000" and certificate(host) not in (first, second), 30)


def served(host: Host, authority: Authority) -> str:
    """The status that a client gets which trusts this authority and no other; 000 where it does not trust."""
    trusting = ("--cacert", str(authority.root), "-w", "%{http_code}", "-o", "/dev/null")
    bearer = ("-H", f"Authorization: Bearer {key(host)}")
    asked = shlex.join(
        ("curl", "-s", "--resolve", f"{SITE}:443:{ADDRESS}", *trusting, *bearer, f"https://{SITE}/types")
    )
    return run(*host.in_client, "sh", "-c", f"{asked} || true")


def certificate(host: Host) -> str:
    """The first that is shown to who asks for the domain."""
    asked = f"openssl s_client -connect {ADDRESS}:443 -servername {SITE} </dev/null 2>&1 || true"
    return "".join(re.findall(r"-----BEGIN CERTIFICATE-----[^-]+", run(*host.in_client, "sh", "-c", asked))[:1])
