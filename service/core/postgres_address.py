"""Where Postgres is, and what the driver is handed to get there."""

import re
import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, urlencode

from msgspec import Struct

from service.core.transport import Weakness

NAME: Final = "DATABASE_URL"
OWNER_NAME: Final = "DATABASE_OWNER_URL"
CONNECT_TIMEOUT_MAX_S: Final = 30.0
# Handed to the driver as they are: it reads the files whenever it connects.
SSL: Final = ("sslcert", "sslkey", "sslcrl", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version")
PASSED: Final = ("passfile", "service", "servicefile", "krbsrvname", "gsslib")
# What vendors print and neither the driver nor Callboard acts on: none of it makes a connection safer or go elsewhere.
WITHOUT_EFFECT: Final = (
    *("fallback_application_name", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("tcp_user_timeout", "sslcompression", "sslsni", "sslcertmode", "load_balance_hosts", "gssdelegation"),
    *("min_protocol_version", "max_protocol_version", "pgbouncer", "supa", "uselibpqcompat"),
)


class Address(Struct, frozen=True):
    """Where Postgres is and how it is reached. Empty: the driver's own default, as libpq's."""

    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    user: str = ""
    password: str = ""
    database: str = ""
    parameters: Mapping[str, str] = {}

    def __repr__(self) -> str:
        """Without the password."""
        return f"Address(hosts={self.hosts!r}, ports={self.ports!r}, database={self.database!r}, …)"

    @property
    def connect_timeout_s(self) -> float | None:
        """What it says, at most CONNECT_TIMEOUT_MAX_S; libpq's 0 is no bound, and there is always one here."""
        timeout_s = int(self.parameters.get("connect_timeout", "0"))
        return min(float(timeout_s), CONNECT_TIMEOUT_MAX_S) if timeout_s > 0 else None

    @property
    def application_name(self) -> str:
        return self.parameters.get("application_name", "")

    @property
    def weakness(self) -> Weakness | None:
        parameters = self.parameters
        mode, authority = parameters.get("sslmode", "prefer"), parameters.get("sslrootcert")
        if authority == "system" or mode in ("verify-ca", "verify-full"):
            return None
        if mode == "require":  # with an authority it is verify-ca, as libpq has it
            return None if authority else "unverified"
        return "plain"

    def notes(self) -> list[str]:
        """What it says that has no effect here, in whole sentences for the log."""
        notes = []
        if names := sorted(self.parameters.keys() & set(WITHOUT_EFFECT)):
            notes.append(f"{NAME} names {', '.join(names)}, which has no effect here.")
        if self.parameters.get("channel_binding") == "require":
            notes.append(
                f"{NAME} says channel_binding=require, which the driver can't do."
                " sslmode=verify-full&sslrootcert=system makes sure of the server as well."
            )
        return notes

    def arguments(self) -> dict[str, Any]:
        """What `asyncpg.connect` and `asyncpg.create_pool` are called with."""
        parameters = self.parameters
        options: dict[str, Any] = {
            "host": [*self.hosts] or None,
            "port": [*self.ports] or None,
            "user": self.user or None,
            "password": self.password or None,
            "database": self.database or None,
            **{name: parameters[name] for name in PASSED if name in parameters},
        }
        if target := parameters.get("target_session_attrs") or ("read-write" if len(self.hosts) > 1 else ""):
            options["target_session_attrs"] = target
        if parameters.get("sslnegotiation") == "direct":
            options["direct_tls"] = True
        if parameters.get("sslrootcert") == "system":
            options["ssl"] = _system_trust()
        elif mode := parameters.get("sslmode"):
            options["ssl"] = mode
        files = {
            name: parameters[name]
            for name in (*SSL, "sslrootcert")
            if name in parameters and parameters[name] != "system"
        }
        options["dsn"] = f"postgresql://?{urlencode(files, quote_via=quote)}" if files else None
        return options

    def server_settings(self) -> dict[str, str]:
        """What the server itself is told at the start of a session."""
        return {"options": _options(self.parameters["options"])} if self.parameters.get("options") else {}


@lru_cache(maxsize=1)
def _system_trust() -> ssl.SSLContext:
    """libpq's `sslrootcert=system`: the certificates this machine trusts, and the server's name has to fit."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    return context


def _options(text: str) -> str:
    """Where spaces were written as `+`, as in a form; in libpq's addresses a plus is a plus."""
    return text.replace("+", " ") if " " not in text and re.match(r"-c\+|--\w", text) else text
