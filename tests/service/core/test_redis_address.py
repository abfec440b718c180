"""REDIS_URL in the forms that servers print, and no part of its password in any sentence about it."""

from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli.up import _redis_cli
from service.core.errors import StartError
from service.core.redis_address import redis_address
from service.core.settings import Settings
from service.embedded import running

NOTHING: Final = {
    "host": "localhost",
    "port": 6379,
    "path": "",
    "db": 0,
    "username": "",
    "password": "",
    "secure": False,
}

SOCKET: Final = {"host": "", "port": 0, "path": "/run/redis.sock"}


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("redis://", {}),
        ("redis://localhost", {}),
        ("redis://127.0.0.1:6380/3", {"host": "127.0.0.1", "port": 6380, "db": 3}),
        ("redis://:pw@host:6379/0", {"host": "host", "password": "pw"}),
        ("redis://default:pw@host:6379", {"host": "host", "username": "default", "password": "pw"}),
        ("redis://me:p%40s%2Fs%3Aw%25@host/1", {"host": "host", "username": "me", "password": "p@s/s:w%", "db": 1}),
        ("redis://:abc=@x.redis.cache.windows.net", {"host": "x.redis.cache.windows.net", "password": "abc="}),
        ("redis://host?db=7", {"host": "host", "db": 7}),
        ("redis://host/?protocol=2&socket_timeout=0.1&max_connections=3&family=0", {"host": "host"}),
        ("redis://[::1]:6379/2", {"host": "::1", "db": 2}),
        ("redis://host?client_name=ours", {"host": "host", "client_name": "ours"}),
        ("REDIS://host", {"host": "host"}),
        ("valkey://default:pw@host:6379", {"host": "host", "username": "default", "password": "pw"}),
        ("rediss://default:pw@host:6379", {"host": "host", "username": "default", "password": "pw", "secure": True}),
        ("valkeys://host", {"host": "host", "secure": True}),
        ("unix:///run/redis.sock", {**SOCKET}),
        ("unix://me:pw@/run/redis.sock?db=2", {**SOCKET, "username": "me", "password": "pw", "db": 2}),
        ("unix:///run/redis.sock?password=p%26w", {**SOCKET, "password": "p&w"}),
        (" redis://host \n", {"host": "host"}),
    ],
)  # fmt: skip
def test_the_forms_that_servers_print(url: str, read: dict[str, Any]) -> None:
    found = redis_address(url)
    assert {name: getattr(found, name) for name in {**NOTHING, **read}} == {**NOTHING, **read}
    assert "pw" not in repr(found)


@pytest.mark.parametrize(
    ("options", "wanted", "hostname"),
    [
        ("", "required", True),
        ("?ssl_check_hostname=false", "required", False),
        (f"?ssl_ca_certs={__file__}", "required", False),
        (f"?ssl_ca_certs={__file__}&ssl_check_hostname=true", "required", True),
        ("?ssl_cert_reqs=none", "none", False),
        ("?ssl_cert_reqs=CERT_NONE", "none", False),
        ("?ssl_cert_reqs=required&ssl_check_hostname=true", "required", True),
        ("?ssl_cert_reqs=none&ssl_check_hostname=True", "none", False),
    ],
)
def test_options_of_tls(options: str, wanted: str, hostname: bool) -> None:
    tls = redis_address(f"rediss://host:6380/0{options}").tls
    assert (tls["ssl_cert_reqs"], tls["ssl_check_hostname"]) == (wanted, hostname)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://host", "is no address that can be used"),
        ("localhost:6379", "is no address that can be used"),
        ("redis+sentinel://host:26379/mymaster", "is no address that can be used"),
        ("redis://host:port/0", "can't be read"),
        ("redis://one:6379,two:6379", "can't be read"),
        ("redis://host/zero", "a database that is no number"),
        ("redis://host?db=-1", "a database that is no number"),
        ("redis://host?protocol=3", "asks for another protocol than RESP2"),
        ("redis://host?decode_responses=true", "does not know: decode_responses"),
        ("redis://host?ssl_cert_reqs=none", "begins with rediss://"),
        ("rediss://host?ssl_cert_reqs=some", "one of none, optional, required"),
        ("rediss://host?ssl_ca_certs=/no/such/file", "its option ssl_ca_certs that can't be found"),
        ("unix://run/redis.sock", "with three slashes"),
        ("redis://:a/b@host", "percent-encoded"),
        ("redis://:a?b@host", "percent-encoded"),
        ("redis://:a#b@host", "percent-encoded"),
        ("redis://:a[b@host", "percent-encoded"),
    ],
)
def test_what_can_not_be_is_one_sentence_at_boot(url: str, sentence: str) -> None:
    with pytest.raises(StartError) as caught:
        running(Settings(database_url="postgresql://x", redis_url=url))
    assert str(caught.value).startswith("REDIS_URL ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


# No letter of a sentence or of an option's name may be one of the password's by chance.
PASSWORD: Final = st.text(st.sampled_from("ÄÖÜ0123456789@:/?#[]%&=+ ñ"), min_size=4, max_size=30)
URL_FORM: Final = st.sampled_from(
    [
        "redis://:{}@host:6379/0",
        "redis://user:{}@host/x",
        "rediss://default:{}@host?protocol=3",
        "unix://:{}@/socket?wrong=1",
        "unix:///socket?password={}&decode_responses=1",
        "redis://host:6379?password={}",
        "redis://{}@host",
        "{}",
        "redis://host/0?wrong={}",
    ]
)


@given(PASSWORD, URL_FORM, st.booleans())
def test_no_part_of_a_password_is_in_a_sentence(password: str, url_form: str, encoded: bool) -> None:
    url = url_form.format(quote(password, safe="") if encoded else password)
    try:
        found = redis_address(url)
    except StartError as error:
        message = f"{error!r} {error.__cause__}"
    else:
        message = repr(found)
        if encoded and url_form.startswith("redis://:{}@"):
            assert found.password == password
    parts = {password[at : at + 4] for at in range(len(password) - 3)}
    assert not [part for part in parts if part.strip() and part in message]


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://127.0.0.1:6380/3", "-h 127.0.0.1 -p 6380 -n 3"),
        ("rediss://default:pw@host", "-h host -p 6379 --tls --user default --askpass -n 0"),
        ("unix://:pw@/run/a b.sock?db=1", "-s '/run/a b.sock' --askpass -n 1"),
    ],
)
def test_the_line_that_up_prints_for_redis_cli(url: str, line: str) -> None:
    assert _redis_cli(redis_address(url)).partition(" ")[2] == line
