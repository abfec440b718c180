"""`DATABASE_URL`, read in one place: what libpq's addresses may say, and what is wrong with this one.

The driver itself would send each parameter that it does not know to the server as a setting, read `+` in a value as a
space, split at the first `@`, and show parts of the address in its errors. So it is handed values, never the text. No
sentence of this module shows a value: what stands in an address may be a piece of a password that was not
percent-encoded.

The parameters: https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-PARAMKEYWORDS.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from service.core.errors import StartError
from service.core.postgres_address import NAME, PASSED, SSL, WITHOUT_EFFECT, Address

SCHEMES: Final = ("postgresql", "postgres")
SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Of several servers, the driver chooses one that fits. Callboard writes, so those of a standby can't be used.
TARGETS: Final = ("any", "primary", "read-write")
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile", "servicefile")
_WHERE: Final = ("host", "port", "user", "password", "dbname")
_CHECKED: Final = (
    *("sslmode", "ssl", "sslnegotiation", "target_session_attrs", "connect_timeout", "options"),
    *("application_name", "client_encoding", "channel_binding", "gssencmode"),
)
KNOWN: Final = frozenset((*_FILES, *SSL, *PASSED, *_WHERE, *_CHECKED, *WITHOUT_EFFECT))

_ENCODE: Final = (
    "DATABASE_URL can't be read: a character in its user or password has to be percent-encoded"
    " (@ as %40, : as %3A, / as %2F, ? as %3F, # as %23, & as %26)."
)


def read(url: str) -> Address:
    """Raises StartError with all that is wrong with `url`, each in one sentence."""
    address, faults = _read(url)
    if faults:
        raise StartError("\n".join(faults))
    return address


def faults(url: str, name: str = NAME) -> list[str]:
    """What is wrong with `url`, each in one sentence that shows no value of it. `name`: of its setting."""
    return [fault.replace(NAME, name) for fault in _read(url)[1]]


def secrets(url: str) -> set[str]:
    """Every text of `url` that may be a password, as it stands there and resolved; also where it can't be used."""
    login = url.partition("://")[2].rpartition("@")[0]
    parts = (part.partition("=") for part in url.partition("?")[2].split("&"))
    passwords = {login.partition(":")[2], *(value for name, _, value in parts if name in ("password", "sslpassword"))}
    return {*passwords, *map(unquote, passwords)} - {""}


@lru_cache(maxsize=16)
def _read(url: str) -> tuple[Address, list[str]]:
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        return Address(), [f"{NAME} is no address that can be used: one begins with {SCHEMES[0]}://."]
    head, query = _split(rest)
    if head is None:
        return Address(), [_ENCODE]
    login, at, servers = head[0].rpartition("@")
    user, _, password = login.partition(":")
    parts = _Found(plain=rest.count("@") <= bool(at))
    values = {"user": user, "password": password, "dbname": head[1]}
    fields = {name: parts.text(name, value) for name, value in values.items() if value}
    parameters = parts.parameters(query)
    fields |= {name: parameters.pop(name) for name in ("user", "password", "dbname") if name in parameters}
    hosts, ports = parts.servers(servers, at, parameters.pop("host", ""), parameters.pop("port", ""))
    parts.check(parameters)
    address = Address(
        hosts, ports, fields.get("user", ""), fields.get("password", ""), fields.get("dbname", ""), parameters
    )
    return address, list(dict.fromkeys(parts.faults))


def _split(rest: str) -> tuple[tuple[str, str] | None, str]:
    """(authority and database), and the query. None where a password seems to have a bare / or ?."""
    before, _, query = rest.partition("?")
    if "@" in query and "@" not in before.partition("/")[0] and ":" in before:
        return None, ""
    authority, _, database = before.partition("/")
    return (None if "@" in database else (authority, database)), query


class _Found:
    """What is wrong, gathered on the way.

    `plain`: no bare @ makes it doubtful what is the name of a parameter and what a piece of a secret.
    """

    def __init__(self, *, plain: bool) -> None:
        self.faults: Final[list[str]] = []
        self._plain: Final = plain

    def text(self, name: str, value: str) -> str:
        decoded = unquote(value)
        if "\0" in decoded or ("�" in decoded and "�" not in value):
            self.faults.append(f"{NAME}: its {name} is no UTF-8 text once its percent signs are resolved.")
        return decoded

    def parameters(self, query: str) -> dict[str, str]:
        parameters: dict[str, str] = {}
        for part in filter(None, query.split("&")):
            raw, mark, value = part.partition("=")
            name = {"database": "dbname"}.get(unquote(raw), unquote(raw))
            if not mark or name not in KNOWN:
                self.faults.append(self._unknown(name, names_it="password" in parameters or not mark))
            else:
                parameters[name] = self.text(name, value)
        if parameters.get("ssl"):  # JDBC's, which libpq knows as well
            parameters.setdefault("sslmode", "require" if parameters.pop("ssl") in ("true", "1") else "disable")
        return parameters

    def _unknown(self, name: str, *, names_it: bool) -> str:
        if not self._plain:
            return _ENCODE
        if names_it or not re.fullmatch(r"[A-Za-z][A-Za-z_]{0,40}", name):
            return (
                f"{NAME} holds a parameter that is none of Postgres' addresses. Is a & in a value not written as %26?"
            )
        return f"{NAME}: {name} is no parameter of Postgres' addresses. Leave it out."

    def servers(self, authority: str, at: str, host: str, port: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Hosts and ports, of the query where it names them. A host that starts with / is a folder of sockets.

        `at`: the @ before them. Without one, what looks like a port may be a password's beginning.
        """
        pairs = [_host_and_port(server) for server in (host or authority).split(",")] if host or authority else []
        hosts = tuple(unquote(name) if not host else name for name, _ in pairs)
        if len(pairs) > 1 and not all(hosts):
            self.faults.append(f"{NAME}: one of its hosts is empty.")
        if not all(map(_is_host, filter(None, hosts))):
            self.faults.append(f"{NAME}: one of its hosts is no name of a host." if self._plain else _ENCODE)
        texts = port.split(",") if port else [number for _, number in pairs]
        if len(texts) not in (1, len(hosts)) and texts and hosts:
            self.faults.append(f"{NAME} names {len(texts)} ports for {len(hosts)} hosts.")
            return hosts, ()
        if not all(re.fullmatch(r"\d{0,5}", text) and int(text or 1) in range(1, 65536) for text in texts):
            self.faults.append(f"{NAME}: a port is a number from 1 to 65535." if at else _ENCODE)
            return hosts, ()
        ports = tuple(int(text or 5432) for text in texts)
        if hosts == ("",):
            hosts = ()
        return hosts, (ports if any(texts) or len(hosts) > 1 else ())

    def check(self, parameters: dict[str, str]) -> None:
        """The parameters' values; what a connection would only show later, or never."""
        for name, fits, sentence in _CHECKS:
            if name in parameters and not fits(parameters[name]):
                self.faults.append(f"{NAME}: {name} {sentence}.")
        system = parameters.get("sslrootcert") == "system"
        for name in _FILES:
            if name in parameters and not (system and name == "sslrootcert") and not _readable(parameters[name]):
                self.faults.append(f"{NAME}: {name} names a file that can't be read here.")
        verified = parameters.get("sslmode") in ("verify-ca", "verify-full")
        if verified and "sslrootcert" not in parameters and not _readable("~/.postgresql/root.crt"):
            self.faults.append(
                f"{NAME}: sslmode={parameters['sslmode']} needs the certificate that signs: add sslrootcert=FILE, or"
                " sslrootcert=system for those this machine trusts."
            )
        if parameters.get("sslnegotiation") == "direct" and not (
            verified or system or parameters.get("sslmode") == "require"
        ):
            self.faults.append(f"{NAME}: sslnegotiation=direct needs sslmode=require or a stricter one.")


def _one_of(*values: str) -> tuple[Callable[[str], bool], str]:
    return (lambda value: value in values), f"is one of {', '.join(values)}"


_CHECKS: Final[tuple[tuple[str, Callable[[str], bool], str], ...]] = (
    ("sslmode", *_one_of(*SSL_MODES)),
    ("sslnegotiation", *_one_of("postgres", "direct")),
    ("channel_binding", *_one_of("disable", "prefer", "require")),
    ("gssencmode", *_one_of("disable", "prefer")),
    ("gsslib", *_one_of("gssapi", "sspi")),
    ("ssl_min_protocol_version", *_one_of("TLSv1.2", "TLSv1.3")),
    ("ssl_max_protocol_version", *_one_of("TLSv1.2", "TLSv1.3")),
    ("target_session_attrs", lambda value: value in TARGETS, f"is one of {', '.join(TARGETS)}: Callboard writes"),
    ("connect_timeout", lambda value: bool(re.fullmatch(r"\d{1,9}", value)), "is a number of seconds"),
    ("client_encoding", lambda value: value.lower() in ("auto", "utf8", "utf-8"), "is UTF8: Callboard speaks no other"),
)


def _host_and_port(text: str) -> tuple[str, str]:
    if match := re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text):
        return match[1], match[2] or ""
    if text.startswith("/"):
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def _is_host(host: str) -> bool:
    if host.startswith("/"):
        return "\0" not in host
    try:
        return not re.search(r"[\s/@\[\]\0]", host) and bool(host.encode("idna"))
    except UnicodeError:
        return False


def _readable(path: str) -> bool:
    try:
        with Path(path).expanduser().open("rb"):
            return True
    except (OSError, ValueError, RuntimeError):
        return False
