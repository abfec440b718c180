"""`DATABASE_URL` in every form that servers and vendors print; no piece of a password is ever shown."""

import re
import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import asyncpg
import pytest
from asyncpg.connect_utils import _parse_connect_arguments  # type: ignore[attr-defined]
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service.core.errors import StartError
from service.core.postgres_address import WITHOUT_EFFECT
from service.core.postgres_url import faults, read, secrets
from service.core.servers import connect
from service.core.settings import Settings, load
from service.embedded import running

# Printed by: embedded servers, Heroku, Neon, Supabase, RDS, Azure, DigitalOcean, Vercel, and libpq's manual.
PRINTED: Final[dict[str, dict[str, Any]]] = {
    "postgresql://postgres:@/db?host=/tmp/pg": {"host": ["/tmp/pg"], "user": "postgres", "password": None},
    "postgresql://callboard@/callboard?host=%2Ftmp%2Fa%20b&port=5433": {"host": ["/tmp/a b"], "port": [5433]},
    "postgresql://%2Fvar%2Frun%2Fpostgresql/db": {"host": ["/var/run/postgresql"], "database": "db"},
    "postgresql:///db": {"host": None, "port": None, "database": "db"},
    "postgres://u:p%40ss@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d4f": {"password": "p@ss", "port": [5432]},
    "postgresql://alex:AbC123dEf@ep-cool-1.us-east-2.aws.neon.tech/dbname?sslmode=require&channel_binding=require": {
        "host": ["ep-cool-1.us-east-2.aws.neon.tech"],
        "ssl": "require",
    },
    "postgresql://u:p@ep-x.neon.tech/db?sslmode=require&connect_timeout=10&options=endpoint%3Dep-x": {"ssl": "require"},
    "postgresql://postgres.abcdefgh:pw@aws-0-eu-central-1.pooler.supabase.com:5432/postgres": {
        "user": "postgres.abcdefgh"
    },
    "postgresql://u%40server:p@server.postgres.database.azure.com:5432/db?sslmode=require": {"user": "u@server"},
    "postgresql://doadmin:p@db-do-user-1.db.ondigitalocean.com:25060/defaultdb?sslmode=require": {"port": [25060]},
    "postgres://u:p@h:6543/postgres?sslmode=require&supa=base-pooler.x&pgbouncer=true": {"port": [6543]},
    "postgresql://u:p@h/db?ssl=true": {"ssl": "require"},
    "postgresql://u:p@[2001:db8::1234]:5433/db": {"host": ["2001:db8::1234"], "port": [5433]},
    "postgresql://u:p@a:5432,b:5433/db?target_session_attrs=read-write": {
        "host": ["a", "b"],
        "port": [5432, 5433],
        "target_session_attrs": "read-write",
    },
    "postgresql://u:p@a,b/db": {"host": ["a", "b"], "port": [5432, 5432], "target_session_attrs": "read-write"},
    "postgresql:///db?host=a,b&port=1,2&user=me&password=x%26y": {"port": [1, 2], "user": "me", "password": "x&y"},
    "postgresql://u:a+b@h/db?password=c+d": {"password": "c+d"},
    "postgresql://u:p@h/db?keepalives_idle=30&gssencmode=disable&application_name=mine&client_encoding=utf8": {},
}


@pytest.mark.parametrize("url", PRINTED)
def test_what_is_printed_works_and_the_driver_takes_it(url: str) -> None:
    arguments = read(url).arguments()
    assert {name: arguments.get(name) for name in PRINTED[url]} == PRINTED[url]
    addresses, parameters = driver(arguments)
    assert len(addresses) == len(arguments["host"] or addresses)
    assert not parameters.server_settings, "nothing of it goes to the server as a setting of its own"


def driver(arguments: dict[str, Any]) -> Any:
    """What the driver makes of it."""
    given_by_default = {
        **dict.fromkeys(("passfile", "service", "servicefile", "direct_tls", "server_settings", "krbsrvname")),
        **dict.fromkeys(("gsslib", "target_session_attrs", "ssl", "command_timeout")),
        "statement_cache_size": 0,
        "max_cached_statement_lifetime": 0,
        "max_cacheable_statement_size": 0,
    }
    return _parse_connect_arguments(**{**given_by_default, **arguments})[:2]


def test_what_the_system_trusts() -> None:
    context = read("postgresql://u:p@h/db?sslmode=verify-full&sslrootcert=system").arguments()["ssl"]
    assert isinstance(context, ssl.SSLContext)
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


def test_how_long_a_connection_may_take() -> None:
    for said, found in {
        "": None,
        "?connect_timeout=0": None,
        "?connect_timeout=10": 10,
        "?connect_timeout=900": 30,
    }.items():
        assert read(f"postgresql://h/db{said}").connect_timeout_s == found


def test_what_has_no_effect_is_said() -> None:
    (note,) = read("postgresql://u:p@h/db?keepalives=1&supa=x").notes()
    assert note == "DATABASE_URL names keepalives, supa, which has no effect here."
    (note,) = read("postgresql://u:p@h/db?channel_binding=require").notes()
    assert "sslmode=verify-full&sslrootcert=system" in note


@pytest.mark.parametrize(
    ("url", "sentences"),
    [
        ("mysql://u:pw@h/db", ["is no address that can be used: one begins with postgresql://"]),
        ("postgresql+asyncpg://u:pw@h/db", ["is no address that can be used"]),
        ("h:5432", ["is no address that can be used"]),
        ("postgresql://u:pw@h/db?schema=x", ["schema is no parameter of Postgres' addresses"]),
        ("postgresql://u:pw@h/db?sslmode=on&port=x", ["a port is a number", "sslmode is one of disable, allow"]),
        ("postgresql://u:pw@h:66000/db", ["a port is a number from 1 to 65535"]),
        ("postgresql://u:pw@a,,b/db", ["one of its hosts is empty"]),
        ("postgresql://u:pw@a..b/db", ["one of its hosts is no name of a host"]),
        ("postgresql://u:pw@a,b/db?port=1,2,3", ["names 3 ports for 2 hosts"]),
        ("postgresql://u:pw@h/db?connect_timeout=soon", ["connect_timeout is a number of seconds"]),
        ("postgresql://u:pw@h/db?target_session_attrs=standby", ["is one of any, primary, read-write: Callboard"]),
        ("postgresql://u:pw@h/db?client_encoding=latin1", ["client_encoding is UTF8"]),
        (
            "postgresql://u:pw@h/db?sslmode=verify-full&sslrootcert=/none",
            ["sslrootcert names a file that can't be read"],
        ),
        ("postgresql://u:p%00w@h/db", ["its password is no UTF-8 text"]),
        ("postgresql://u:pw@h/db?sslmode", ["holds a parameter that is none"]),
        ("postgresql://u:p/w@h/db", ["has to be percent-encoded"]),
        ("postgresql://u:p?w@h/db", ["has to be percent-encoded"]),
    ],
)
def test_what_is_wrong_is_one_sentence_each(url: str, sentences: list[str]) -> None:
    found = faults(url)
    assert len(found) == len(sentences), found
    for sentence, words in zip(found, sentences, strict=True):
        assert re.match(r"DATABASE_URL\b", sentence)
        assert words in sentence
        assert "pw" not in sentence
    with pytest.raises(StartError) as caught:
        running(Settings(database_url=url, redis_url="redis://none"))
    assert str(caught.value).splitlines() == found


def test_verify_full_needs_to_know_whom_to_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (sentence,) = faults("postgresql://u:p@h/db?sslmode=verify-full&connect_timeout=11")
    assert "add sslrootcert=FILE, or sslrootcert=system" in sentence


def test_an_empty_password_is_no_secret() -> None:
    """It was a traceback."""
    assert load({"DATABASE_URL": "postgresql://postgres:@/db?host=/tmp"}).secrets == ()


def test_each_parameter_that_vendors_add_is_known() -> None:
    assert not faults("postgresql://h/db?" + "&".join(f"{name}=1" for name in WITHOUT_EFFECT))


# Long enough that a piece of it stands in no sentence by chance; every sign that may break an address.
PASSWORDS: Final = st.text(st.sampled_from("qzxj0-9@:/?#&=%+;,[]' \"\\é中"), min_size=6, max_size=30).filter(
    lambda text: len(re.sub(r"\W|_", "", text)) >= 4
)
PIECE: Final = 4


def pieces(password: str) -> list[str]:
    """What of it would give it away: every run of letters and digits that long."""
    return [word for word in re.findall(r"[a-z0-9é中]+", password) if len(word) >= PIECE]


@given(
    PASSWORDS,
    st.sampled_from(["", "?sslmode=require", "?sslmode=wrong", "?port=x", "?unknown=1", "?connect_timeout=x"]),
)
@example("qzqz@zxzx/jxjx?qzqz=zxzx", "")
@example("zxzx&jxjx=qzqz", "?sslmode=wrong")
@example("zxzx?qjqj=1", "?unknown=1")
@examples(max_examples=300, deadline=None)
def test_no_piece_of_a_password_is_in_a_sentence(password: str, query: str) -> None:
    """Encoded as it should be, and as it stands, in each place of an address."""
    for text in (quote(password, safe=""), password):
        for url in (
            f"postgresql://u:{text}@h/db{query}",
            f"postgresql://u:{text}@/db{query or '?'}&host=/tmp",
            f"postgresql://h/db?user=u&password={text}{query.replace('?', '&')}",
            f"postgresql:///db?password={text}&user=u{query.replace('?', '&')}",
            f"postgresql://u:{text}@a,b:x/db{query}",
        ):
            said = " ".join(faults(url))
            try:
                said += repr(read(url)) + " ".join(read(url).notes())
            except StartError as error:
                said += str(error)
            said += repr(Settings(database_url=url))
            assert not [piece for piece in pieces(password) if piece in said], (url, said)


@given(PASSWORDS)
@examples(max_examples=300, deadline=None)
def test_a_password_that_is_encoded_arrives_and_is_kept_out_of_the_log(password: str) -> None:
    encoded = quote(password, safe="")
    for url in (f"postgresql://u:{encoded}@h/db", f"postgresql:///db?user=u&password={encoded}"):
        assert read(url).arguments()["password"] == password
        assert driver(read(url).arguments())[1].password == password
        assert {password, encoded} <= secrets(url)
        assert {password, encoded} <= set(Settings(database_url=url).secrets)


async def test_no_piece_of_a_password_is_in_what_the_driver_says(settings: Settings) -> None:
    for where in ("127.0.0.1:9", "no-such-host.invalid", "127.0.0.1:9,127.0.0.1:10"):
        given_to = Settings(database_url=f"postgresql://u:qzxjqzxj@{where}/none")
        with pytest.raises((OSError, asyncpg.InternalClientError)) as caught:
            await connect(given_to, "test")
        assert "qzxj" not in f"{caught.value!r}{caught.value}"
