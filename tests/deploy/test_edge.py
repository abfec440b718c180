"""The proxy, which is the real Caddy: what it keeps inside, what it bounds, whom it believes."""

import json
import shlex
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.host import ADDRESS, CLIENT_ADDRESS, SITE, STRANGER_ADDRESS, THERE, Host, run, until
from tests.deploy.product import Product, curl, key, outside, query, served

pytestmark = pytest.mark.host

LARGE: Final = 70_000_000
# Waits to be asked for the body, as long as it takes.
PATIENT: Final = ("-H", "Expect: 100-continue", "--expect100-timeout", "50")
SENT: Final = ("-o", "/dev/null", "-w", "%{http_code} %{size_upload}")


@pytest.fixture(scope="module")
def large(host: Host) -> Path:
    file = host.work / "large"
    with file.open("wb") as made:
        made.truncate(LARGE)
    return file


@pytest.fixture(scope="module")
def corporate(host: Host, product: Product) -> Iterator[tuple[str, ...]]:
    """A second proxy, with certificate files and behind a balancer; words for curl, which trusts the certificate."""
    certs = host.root / THERE.strip("/") / "certs"
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", f"/CN={SITE}", "-addext", f"subjectAltName=DNS:{SITE}",
        "-keyout", str(certs / "tls.key"), "-out", str(certs / "tls.crt"))  # fmt: skip
    shutil.copy(Path(__file__).parent / "echo.py", host.root / "srv")
    image = f"localhost/callboard:{served(host)}"
    host.ssh(f"docker run -d --name echo --network callboard_edge -v /srv/echo.py:/echo.py:ro {image} python3 /echo.py")
    given = {"TLS": "files", "UPSTREAMS": "echo:8000", "TRUSTED_PROXIES": f"{CLIENT_ADDRESS}/32"}
    words = " ".join(f"-e {name}={value}" for name, value in given.items())
    host.ssh(
        f"cd {THERE} && CADDYFILE=./Caddyfile docker compose --env-file settings run -d --no-deps --name side "
        f"-p 8443:443 {words} proxy"
    )
    yield ("--cacert", str(certs / "tls.crt"))
    host.ssh("docker rm -f side echo")


def echoed(host: Host, *words: str) -> dict[str, object]:
    told: dict[str, object] = json.loads(outside(host, *words, f"https://{SITE}:8443/echo"))
    return told


def test_what_is_not_for_outside_stays_inside(host: Host, product: Product) -> None:
    assert [curl(host, path) for path in ("/healthz", "/readyz", "/metrics")] == ["404"] * 3
    assert curl(host, "/types", known="cb_wrong") == "401"
    assert outside(host, *SENT[:3], "%{http_code}", "-H", f"Host: {SITE}", f"http://{ADDRESS}") == "308"


def test_a_body_that_says_it_is_too_large_is_refused_unread(host: Host, product: Product, large: Path) -> None:
    stored = query(host, "select count(*) from events")
    for version in ("--http1.1", "--http2"):
        assert curl(host, "/events", version, *PATIENT, "--data-binary", f"@{large}") == "413"
    body = json.loads(curl(host, "/events", *PATIENT, "--data-binary", f"@{large}", code=False))
    assert (body["status"], body["detail"]) == (413, "larger than 8388608 bytes (EDGE_BODY_MAX)")
    assert query(host, "select count(*) from events") == stored


def test_certificate_files_and_a_balancer_in_front(host: Host, corporate: tuple[str, ...], large: Path) -> None:
    def believed() -> bool:
        return echoed(host, *corporate, "-H", "X-Forwarded-For: 203.0.113.9")["for"] == f"203.0.113.9, {CLIENT_ADDRESS}"

    until(believed, 30)
    stranger = (*corporate, "--interface", STRANGER_ADDRESS)
    assert echoed(host, *stranger, "-H", "X-Forwarded-For: 203.0.113.9")["for"] == STRANGER_ADDRESS


def test_nobody_suffers_from_anothers_body(host: Host, corporate: tuple[str, ...], large: Path) -> None:
    """What says its length never gets behind the proxy; what does not is cut off there, and the API stays in use."""
    url = f"https://{SITE}:8443"
    for version in ("--http1.1", "--http2"):
        words = (*corporate, version, "--data-binary", f"@{large}")
        assert outside(host, *SENT, *words, *PATIENT, f"{url}/declared") == "413 0"
        run(*host.in_client, "sh", "-c", shlex.join(("curl", "-s", "-m", "60", "--resolve", f"{SITE}:8443:{ADDRESS}",
            "-H", "Transfer-Encoding: chunked", "-H", "Expect:", *words, f"{url}/chunked")) + " || true")  # fmt: skip
        assert [echoed(host, *corporate)["seen"] for _ in range(5)] == [
            ["/chunked"] * (1 if "1.1" in version else 2)
        ] * 5


def test_slow_clients_are_cut_off(host: Host, product: Product) -> None:
    """A line of a header that never ends by the proxy, in 10 s; a body that trickles in by the API, in 30 s, which over
    HTTP/1.1 gets through when the proxy stops listening, in 60 s."""

    def timed(command: str) -> tuple[str, float]:
        begun = time.monotonic()
        result = run(*host.in_client, "sh", "-c", command, timeout_s=90)
        return result, time.monotonic() - begun

    trickle = "(printf '{0}'; for each in $(seq 80); do printf x; sleep 1; done) 2>/dev/null"
    endless = rf"GET / HTTP/1.1\r\nHost: {SITE}\r\nX: "
    header = (
        f"{trickle.format(endless)} | openssl s_client -quiet -connect {ADDRESS}:443 -servername {SITE} 2>/dev/null"
    )
    slow = [
        f"{trickle.format('')} | curl -sk -m 80 --resolve {SITE}:443:{ADDRESS} {version} -X POST -T . -H 'Expect:' "
        f"-H 'Authorization: Bearer {key(host)}' -H 'Content-Type: application/json' "
        f"-o /dev/null -w '%{{http_code}} %{{http_version}}' https://{SITE}/events"
        for version in ("--http1.1", "--http2")
    ]
    with ThreadPoolExecutor(3) as side_by_side:
        (_, header_s), (first, first_s), (second, second_s) = side_by_side.map(timed, (header, *slow))
    assert 9 < header_s < 20
    assert (first, second) == ("408 1.1", "408 2")
    assert first_s < 75
    assert second_s < 45
