"""All settings: one frozen Struct, read once from the environment; `deploy/env.example` lists the same names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from msgspec import Meta, Struct, ValidationError, convert, json
from msgspec.structs import fields

from service import postgres_url
from service.destinations import allowed
from service.errors import SettingsError

PREFIX = "CALLBOARD_"
# What each provider can't be asked without.
PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "anthropic": ("anthropic_api_key",),
    "openai": ("openai_api_key",),
    "azure": ("azure_openai_api_key", "azure_openai_endpoint"),
    "gemini": ("gemini_api_key",),
    "mistral": ("mistral_api_key",),
    "local": ("local_base_url",),
}
# Which settings are addresses that are spoken to by HTTP.
ADDRESSES = ("url", "page_url")
ADDRESS_ENDINGS = ("_base_url", "_endpoint")
LOOPBACK = ("127.0.0.1", "localhost", "::1")

LOCAL_TOKEN = "cl_[A-Za-z0-9_-]{43}"  # noqa: S105 - the form of it

SECRET_MIN = 4  # shorter ones are parts of words
_PASSWORD = re.compile(r"://[^/?#@:]*:([^/?#]*)@|[?&]password=([^&]+)")

Positive = Annotated[int, Meta(ge=1)]


class Outside(Struct, frozen=True, kw_only=True):
    """What is not ours, under the names that everybody gives it: `<NAME>` each, without a prefix."""

    database_url: str = ""
    database_owner_url: str = ""
    redis_url: str = ""
    anthropic_api_key: str = ""
    anthropic_base_url: str = ""
    openai_api_key: str = ""
    openai_base_url: str = ""
    azure_openai_api_key: str = ""
    azure_openai_endpoint: str = ""
    openai_api_version: str = ""
    gemini_api_key: str = ""
    mistral_api_key: str = ""
    local_base_url: str = ""
    local_api_key: str = ""
    local_json: Literal["json_schema", "json_object"] = "json_schema"
    page_url: str = ""


class Settings(Outside, frozen=True, kw_only=True):
    """`CALLBOARD_<NAME>` each, and those of Outside; `<NAME>_FILE` names a file with the value."""

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
        texts = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        urls = (value for name, value in texts.items() if name.endswith(("_url", "_endpoint")))
        passwords = [match[1] or match[2] or "" for url in urls if (match := _PASSWORD.search(url))]
        keys = (value for name, value in texts.items() if name.endswith(("api_key", "local_token")))
        secrets = {*keys, *passwords, *map(unquote, passwords)}
        secrets |= postgres_url.secrets(self.database_url) | postgres_url.secrets(self.database_owner_url)
        secrets |= {json.encode(secret).decode()[1:-1] for secret in secrets}
        return tuple(sorted((secret for secret in secrets if len(secret) >= SECRET_MIN), key=len, reverse=True))

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().resolve()

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def has_provider_key(self) -> bool:
        return any(self.has(provider) for provider in PROVIDERS)

    def has(self, provider: str) -> bool:
        """Whether all is set that this one of PROVIDERS can't be asked without."""
        return all(getattr(self, name) for name in PROVIDERS[provider])

    @property
    def simulated(self) -> bool:
        """Whether answers come from the simulator. `callboard up` decides for `auto`; elsewhere that is off."""
        return self.simulate == "on"


def variable(name: str) -> str:
    """The environment variable that sets the field `name`."""
    return name.upper() if name in Outside.__struct_fields__ else PREFIX + name.upper()


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings, without the white space around them; an empty variable counts as unset.

    Raises SettingsError with a sentence for each fault, which begins with the variable's name: where a value does not
    fit, a file can't be read, a `CALLBOARD_` name is unknown, a key can't be sent or an address is none.
    """
    known = {variable(field.name): field.name for field in fields(Settings)}
    faults = [
        f"{name} is not a setting. deploy/env.example lists them all."
        for name in environ
        if name.startswith(PREFIX) and name.removesuffix("_FILE") not in known
    ]
    values: dict[str, Any] = {}
    for name, field in known.items():
        try:
            value = environ.get(name, "").strip() or _from_file(environ.get(f"{name}_FILE", "").strip(), name)
            if value:
                values[field] = _convert(name, field, value)
        except SettingsError as fault:
            faults.append(str(fault))
    faults += filter(None, (_fault(field, value) for field, value in values.items()))
    if faults:
        for field in ("database_url", "database_owner_url"):
            if url := values.get(field):
                faults += postgres_url.faults(url, variable(field))
        raise SettingsError("\n".join(faults))
    return Settings(**values)


def _fault(field: str, value: Any) -> str | None:
    """What is wrong with a key or an address, without a letter of it: an address may hold a password."""
    name = variable(field)
    if field.endswith("api_key") and not (value.isascii() and value.isprintable()):
        return f"{name} holds characters that no key has (a line break inside it, or a letter that is not ASCII)."
    if field == "web_allow":
        try:
            allowed(value)
        except ValueError as error:
            return f"{name}: {error}."
    if field in ADDRESSES or field.endswith(ADDRESS_ENDINGS):
        if not value.isprintable() or any(map(str.isspace, value)):
            return f"{name} holds white space or other characters that no address has."
        if not _is_http(value):
            return f"{name} is no address of a server: it has to be http:// or https:// and a host."
    return None


def _is_http(address: str) -> bool:
    try:
        url = urlsplit(address)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is none, half a pair of brackets
        return False


def _from_file(path: str, name: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{name}_FILE={path} can't be read ({error}). Name a readable file, or set {name}."
        ) from error


def _convert(name: str, field: str, value: str) -> Any:
    kind = next(setting.type for setting in fields(Settings) if setting.name == field)
    try:
        return convert(value, kind, strict=False)
    except ValidationError as error:
        raise SettingsError(f"{name}={value} does not fit: {error}.") from error
