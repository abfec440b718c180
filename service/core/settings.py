"""All settings: one frozen Struct, read once from the environment; `deploy/env.example` lists the same names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from msgspec import Meta, Struct, ValidationError, convert, json
from msgspec.structs import fields

from service.core import postgres_url
from service.core.declared import Variables, variables_of_providers
from service.core.destinations import allowed
from service.core.errors import SettingsError

PREFIX = "CALLBOARD_"
# What is not ours has the name that everybody gives it, without the prefix.
OUTSIDE = ("database_url", "database_owner_url", "redis_url")
# How the names of variables end that hold addresses spoken to by HTTP, and what no log may show.
ADDRESS_ENDINGS = ("CALLBOARD_URL", "_BASE_URL", "_ENDPOINT")
SECRET_ENDINGS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
LOOPBACK = ("127.0.0.1", "localhost", "::1")

LOCAL_TOKEN = "cl_[A-Za-z0-9_-]{43}"  # noqa: S105 - the form of it

SECRET_MIN = 4  # shorter ones are parts of words
_PASSWORD = re.compile(r"://[^/?#@:]*:([^/?#]*)@|[?&]password=([^&]+)")

Positive = Annotated[int, Meta(ge=1)]


class Settings(Struct, frozen=True, kw_only=True):
    """`CALLBOARD_<NAME>` each, but for those of OUTSIDE; `<NAME>_FILE` names a file with the value.

    `providers` are the variables that files of workers/providers/ name, of those that are set.
    """

    database_url: str = ""
    database_owner_url: str = ""
    redis_url: str = ""
    providers: Mapping[str, str] = {}
    secrets_dir: str = ""
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    data_dir: str = ".callboard"
    url: str = "http://127.0.0.1:8000"
    api_key: str = ""
    local_token: Annotated[str, Meta(pattern=f"^({LOCAL_TOKEN})?$")] = ""
    concurrency: Positive = 200
    pool: Annotated[int, Meta(ge=1, le=1000)] = 10
    grace_s: Positive = 30
    lame_duck_s: Annotated[int, Meta(ge=0, le=60)] = 0
    body_max: Positive = 1_048_576
    batch_max: Positive = 1000
    result_max: Positive = 1_048_576
    streams_max: Positive = 1000
    retention_days: Positive = 30
    dead_retention_days: Positive = 90
    audit_retention_days: Positive = 365
    state_retention_days: Annotated[int, Meta(ge=0)] = 0
    document_retention_days: Annotated[int, Meta(ge=0)] = 0
    budget_day_usd: Annotated[float, Meta(ge=0)] = 5.0
    simulate: Literal["auto", "on", "off"] = "auto"
    redis_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:{}/-]{1,64}$")] = "callboard:"
    web_allow: str = ""
    failpoints: str = ""

    def __repr__(self) -> str:
        """Without secrets, so that a log line or a traceback can't carry one."""
        return f"Settings(host={self.host!r}, port={self.port}, data_dir={self.data_dir!r}, …)"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Keys and the passwords in addresses, in every spelling that may turn up in a log."""
        values = {name: str(getattr(self, field)) for name, field in variables().items()}
        secrets = {*secrets_of(values | dict(self.providers))}
        secrets |= postgres_url.secrets(self.database_url) | postgres_url.secrets(self.database_owner_url)
        return spellings(secrets)

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().resolve()

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def has_provider_key(self) -> bool:
        return any(known.keys and self.has(name) for name, known in variables_of_providers().items())

    def has(self, provider: str) -> bool:
        """Whether all is set that this provider can't be asked without."""
        known = variables_of_providers().get(provider, Variables())
        return all(self.providers.get(name) for name in known.keys)

    @property
    def simulated(self) -> bool:
        """Whether answers come from the simulator. `callboard up` decides for `auto`; elsewhere that is off."""
        return self.simulate == "on"


def variable(name: str) -> str:
    """The environment variable that sets the field `name`."""
    return name.upper() if name in OUTSIDE else PREFIX + name.upper()


def variables() -> Mapping[str, str]:
    """The fields by the variables that set them."""
    return {variable(field.name): field.name for field in fields(Settings) if field.name != "providers"}


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings, without the white space around them; an empty variable counts as unset.

    Raises SettingsError with a sentence for each fault, which begins with the variable's name: where a value does not
    fit, a file can't be read, a `CALLBOARD_` name is unknown, a key can't be sent or an address is none.
    """
    known = variables()
    faults = [
        f"{name} is not a setting. deploy/env.example lists them all."
        for name in environ
        if name.startswith(PREFIX) and name.removesuffix("_FILE") not in known
    ]
    values: dict[str, Any] = {}
    for name, field in known.items():
        try:
            if text := text_of(name, environ):
                values[field] = _convert(name, field, checked(name, text))
        except SettingsError as fault:
            faults.append(str(fault))
    providers: dict[str, str] = {}
    for name in (name for of in variables_of_providers().values() for name in (*of.keys, *of.options)):
        try:
            if text := text_of(name, environ):
                providers[name] = checked(name, text)
        except SettingsError as fault:
            faults.append(str(fault))
    if faults:
        for field in ("database_url", "database_owner_url"):
            if url := values.get(field):
                faults += postgres_url.faults(url, variable(field))
        raise SettingsError("\n".join(faults))
    return Settings(**values, providers=providers)


def text_of(name: str, environ: Mapping[str, str]) -> str:
    """What the variable `name` says, or the file that NAME_FILE names, or the file `name` of CALLBOARD_SECRETS_DIR.

    Raises SettingsError where a file can't be read.
    """
    if value := environ.get(name, "").strip():
        return value
    path, folder = environ.get(f"{name}_FILE", "").strip(), environ.get("CALLBOARD_SECRETS_DIR", "").strip()
    if not path and folder and Path(folder, name.lower()).exists():
        path = str(Path(folder, name.lower()))
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{name}_FILE={path} can't be read ({error}). Name a readable file, or set {name}."
        ) from error


def checked(name: str, value: str) -> str:
    """The value. Raises SettingsError, without a letter of it, where a key can't be sent or an address is none."""
    if name.endswith("_KEY") and not (value.isascii() and value.isprintable()):
        raise SettingsError(
            f"{name} holds characters that no key has (a line break inside it, or a letter that is not ASCII)."
        )
    if name.endswith(ADDRESS_ENDINGS):
        if not value.isprintable() or any(map(str.isspace, value)):
            raise SettingsError(f"{name} holds white space or other characters that no address has.")
        if not is_http(value):
            raise SettingsError(f"{name} is no address of a server: it has to be http:// or https:// and a host.")
    return value


def is_http(address: str) -> bool:
    try:
        url = urlsplit(address)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is none, half a pair of brackets
        return False


def secrets_of(values: Mapping[str, str]) -> set[str]:
    """Of variables and their values: the keys, and the passwords in addresses."""
    urls = (value for name, value in values.items() if name.endswith(("_URL", "_ENDPOINT")))
    passwords = [match[1] or match[2] or "" for url in urls if (match := _PASSWORD.search(url))]
    keys = (value for name, value in values.items() if name.endswith(SECRET_ENDINGS))
    return {*keys, *passwords, *map(unquote, passwords)}


def spellings(secrets: set[str]) -> tuple[str, ...]:
    """Each as it may turn up in a log; the longest first, and none that may be part of a word."""
    every = secrets | {json.encode(secret).decode()[1:-1] for secret in secrets}
    return tuple(sorted((secret for secret in every if len(secret) >= SECRET_MIN), key=len, reverse=True))


def _convert(name: str, field: str, value: str) -> Any:
    kind = next(setting.type for setting in fields(Settings) if setting.name == field)
    try:
        if field == "web_allow":
            allowed(value)
        return convert(value, kind, strict=False)
    except ValidationError as error:
        raise SettingsError(f"{name}={value} does not fit: {error}.") from error
    except ValueError as error:
        raise SettingsError(f"{name}: {error}.") from error
