"""Settings of a user's own: a Struct beside their nodes, read from the environment when the worker starts."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, TypeVar, get_type_hints

from msgspec import NODEFAULT, Meta, Struct, ValidationError, convert
from msgspec.structs import fields, replace

from schemas.catalog import modules
from schemas.origin import line_of
from service.core.errors import SettingsError, WiringError
from service.core.settings import PREFIX, checked, is_http, text_of

SIMULATED: Final = "simulated"


class Settings(Struct, frozen=True, kw_only=True):
    """Settings of your own: declare a subclass beside your nodes, and take it by its type.

    Each field is read from the variable of its name in capitals, from the file that NAME_FILE names, or from the file
    in CALLBOARD_SECRETS_DIR that has its name. A field without a default has to be set. `Meta(description=…)` is what
    deploy/env.example says of it; `Meta(extra={"simulated": "/pages"})` is the path of the simulator that an address
    has by default where answers are simulated. `run.web` may post to an address that is a setting, inside too.
    """

    def __repr__(self) -> str:
        """Without values, so that no log line can carry a secret."""
        return f"{type(self).__name__}(…)"


S = TypeVar("S", bound=Settings)
Own = Mapping[type[Settings], Settings]


class SettingsSlot(Struct, frozen=True):
    """Stands among a step's arguments for the Settings that are put there."""

    kind: type[Settings]

    def among(self, own: Own) -> Settings:
        """Raises WiringError where they were not read at the start."""
        if self.kind not in own:
            name = self.kind.__name__
            raise WiringError(f"{name} was not read when the worker started. Declare it beside your nodes.")
        return own[self.kind]


def slot_of(hint: Any) -> SettingsSlot | None:
    """What a parameter with this annotation takes, where it is Settings."""
    return SettingsSlot(hint) if isinstance(hint, type) and issubclass(hint, Settings) else None


def read(packages: Sequence[ModuleType], environ: Mapping[str, str]) -> Own:
    """The Settings that modules of these packages declare. Raises WiringError with a sentence for each fault."""
    faults: list[str] = []
    own = {kind: value for kind in declared(packages) if (value := _read(kind, environ, faults))}
    if faults:
        raise WiringError("\n".join(faults))
    return own


def declared(packages: Sequence[ModuleType]) -> Iterator[type[Settings]]:
    for module in (module for package in packages for module in modules(package)):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Settings) and value.__module__ == module.__name__:
                yield value


def _read(kind: type[S], environ: Mapping[str, str], faults: list[str]) -> S | None:
    values: dict[str, Any] = {}
    for field in fields(kind):
        name = field.name.upper()
        where = f"{kind.__name__}.{field.name} ({_line_of(kind)})"
        try:
            if name.startswith(PREFIX):
                raise SettingsError(f"{where} would be read from {name}, a name of Callboard's own. Rename the field.")
            if text := text_of(name, environ):
                values[field.name] = convert(_checked(name, text), field.type, strict=False)
            elif field.default is NODEFAULT and field.default_factory is NODEFAULT:
                raise SettingsError(f"{name} is not set, and {where} has no default. Set it, or give it one.")
        except ValidationError as error:
            faults.append(f"{name} does not fit {where}: {error}.")
        except SettingsError as error:
            faults.append(str(error))
    return None if faults else kind(**values)


def _checked(name: str, value: str) -> str:
    """Of addresses those of the web alone are known here: another scheme is taken as it is."""
    if name.endswith("_URL") and not is_http(value) and value.partition("://")[0] in (value, "http", "https"):
        raise SettingsError(f"{name} is no address: it has to be http:// or https:// and a host.")
    return checked(name, value)


def _line_of(kind: type[Settings]) -> str:
    return line_of(inspect.getfile(kind), inspect.getsourcelines(kind)[1])


def simulated(own: Own, simulator_url: str) -> Own:
    """The same where answers are simulated: addresses that are not set, and say so, are the simulator's."""
    return {kind: replace(value, **dict(_addresses(value, simulator_url))) for kind, value in own.items()}


def _addresses(value: Settings, simulator_url: str) -> Iterator[tuple[str, str]]:
    for name, hint in get_type_hints(type(value), include_extras=True).items():
        for meta in getattr(hint, "__metadata__", ()):
            path = (meta.extra or {}).get(SIMULATED) if isinstance(meta, Meta) else None
            if path and not getattr(value, name):
                yield name, f"{simulator_url}{path}"


def texts(own: Own) -> dict[str, str]:
    """What is set, by variable."""
    return {field.name.upper(): str(getattr(value, field.name)) for value in own.values() for field in fields(value)}


def addresses(own: Own) -> list[str]:
    """The addresses of the web among them."""
    return [text for name, text in texts(own).items() if name.endswith("_URL") and is_http(text)]
