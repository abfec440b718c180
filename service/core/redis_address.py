"""REDIS_URL: what it may say, in the forms that servers and hosting services print, and the connection made of it.

No sentence about it holds a part of it but the name of an option: what can't be read may be a password.
"""

import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection

from service.core.errors import StartError
from service.core.transport import Weakness

PORT: Final = 6379
# valkey:// is what Valkey's own tools print for the same protocol; redis+socket:// is the name some clients give unix://.
SCHEMES: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
}
FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
TLS: Final = (*FILES, "ssl_cert_reqs", "ssl_check_hostname")
CERT_REQS: Final = ("none", "optional", "required")
# Options of other clients: Callboard sets its own time limits and bounds, and resolves names of either family.
IGNORED: Final = (
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry_on_timeout", "health_check_interval"),
    *("timeout", "max_connections", "family"),
)
ENCODE: Final = "write @ : / ? # & % in the user name and the password percent-encoded (%40 for @)"
_OPTION: Final = re.compile(r"[a-z_]{1,40}")


class RedisAddress(Struct, frozen=True):
    """Where Redis is: `path` of a Unix socket, or `host` and `port`; `tls` holds redis-py's `ssl_*` options."""

    host: str
    port: int
    path: str
    db: int
    username: str
    password: str
    secure: bool
    tls: dict[str, str | bool]
    client_name: str

    def __repr__(self) -> str:
        """Without the password, so that a log line or a traceback can't carry it."""
        return f"RedisAddress(db={self.db}, secure={self.secure}, …)"

    @property
    def weakness(self) -> Weakness | None:
        if not self.secure:
            return "plain"
        anyone = self.tls["ssl_cert_reqs"] == "none" or not (
            "ssl_ca_certs" in self.tls or self.tls["ssl_check_hostname"]
        )
        return "unverified" if anyone else None

    def connection(self) -> dict[str, Any]:
        """The arguments of a redis-py connection pool, `connection_class` among them."""
        who = {"username": self.username, "password": self.password, "client_name": self.client_name}
        # redis-py would say its own name and version, for which Redis 6 wants a right that may also end connections.
        quiet = {"lib_name": None, "lib_version": None}
        common = {"db": self.db, **quiet, **{name: value for name, value in who.items() if value}}
        if self.path:
            return {"connection_class": UnixDomainSocketConnection, "path": self.path, **common}
        where = {"host": self.host, "port": self.port, "socket_keepalive": True, **common}
        if self.secure:
            return {"connection_class": SSLConnection, **where, **self.tls}
        return {"connection_class": Connection, **where}


def redis_address(url: str) -> RedisAddress:
    """Raises StartError with one sentence where the address can't be read or says what Callboard can't do."""
    scheme = url.strip().partition("://")[0].lower()
    if scheme not in SCHEMES or "://" not in url:
        raise StartError("REDIS_URL is no address that can be used: one begins with redis://, rediss:// or unix://.")
    parts = _split(url.strip(), scheme)
    options = _options(parts.query, SCHEMES[scheme])
    user = {"username": unquote(parts.username or ""), "password": unquote(parts.password or "")}
    user |= {name: options[name] for name in user if name in options}
    client_options = {"client_name": options.get("client_name", ""), **user}
    if SCHEMES[scheme] == "unix":
        path, db = unquote(parts.path), _db(options.get("db", ""))
        if parts.hostname or path in ("", "/"):
            raise StartError("REDIS_URL names no socket: a socket's address is unix:///PATH, with three slashes.")
        return RedisAddress(host="", port=0, path=path, db=db, secure=False, tls={}, **client_options)
    secure = SCHEMES[scheme] == "rediss"
    return RedisAddress(
        host=unquote(parts.hostname or "localhost"),
        port=parts.port or PORT,
        path="",
        db=_db(options.get("db") or unquote(parts.path).strip("/")),
        secure=secure,
        tls=_tls(options) if secure else {},
        **client_options,
    )


def _split(url: str, scheme: str) -> SplitResult:
    """A password with a raw `/`, `?` or `#` ends the host early, and its `@` is found behind it."""
    try:
        parts = urlsplit(f"{scheme}{url[len(scheme) :]}")
        valid = parts.port is None or parts.port > 0
    except ValueError:
        valid = False
    if not valid or "@" in f"{parts.path}{parts.query}" or parts.fragment:
        raise StartError(f"REDIS_URL can't be read: {ENCODE}; the port is a number.")
    return parts


def _options(query: str, scheme: str) -> dict[str, str]:
    options = {name.lower(): value for name, value in parse_qsl(query, keep_blank_values=True)}
    known = ("db", "username", "password", "client_name", "protocol", *IGNORED, *TLS)
    unknown = [name for name in options if name not in known]
    if unknown and ("password" in options or not _OPTION.fullmatch(unknown[0])):
        raise StartError(f"REDIS_URL has an option that Callboard does not know; {ENCODE}.")
    if unknown:
        raise StartError(f"REDIS_URL has an option that Callboard does not know: {unknown[0]}. Take it out.")
    if options.get("protocol", "2") != "2":
        raise StartError(
            "REDIS_URL asks for another protocol than RESP2: set the option `protocol` to 2, or take it out."
        )
    tls_option = next((name for name in TLS if name in options), None)
    if tls_option and scheme != "rediss":
        raise StartError(
            f"REDIS_URL has the option {tls_option}, which needs TLS: an address with TLS begins with rediss://."
        )
    return options


def _db(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise StartError("REDIS_URL has a database that is no number: redis://HOST:PORT/0 has the first one.")
    return int(text or "0")


def _tls(options: dict[str, str]) -> dict[str, str | bool]:
    """`CERT_NONE` is how Python's ssl module spells `none`, and what some services print.

    The authorities that a machine trusts sign for everybody: where REDIS_URL names none, the host's name has to fit.
    """
    tls: dict[str, str | bool] = {name: options[name] for name in FILES if name in options}
    lost = next((name for name in tls if not Path(str(tls[name])).is_file()), None)
    if lost:
        raise StartError(f"REDIS_URL names a file in its option {lost} that can't be found.")
    wanted = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if wanted not in CERT_REQS:
        raise StartError(f"REDIS_URL has ssl_cert_reqs, which is one of {', '.join(CERT_REQS)}.")
    default = "false" if "ssl_ca_certs" in tls else "true"
    hostname = options.get("ssl_check_hostname", default).lower() in ("true", "yes", "1", "")
    return {**tls, "ssl_cert_reqs": wanted, "ssl_check_hostname": hostname and wanted != "none"}
