"""Templates, the files they use, the headers every page carries; how times, sums and JSON read there."""

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from service.core.release import release

PRETTY_MAX: Final = 100_000
UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
STATIC: Final = "/ui/static"
MEDIA_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class Asset(Struct, frozen=True):
    content: bytes
    media_type: str
    digest: str


class Look(Struct, frozen=True):
    environment: Environment
    assets: Mapping[str, Asset]

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self.environment.get_template(template).render(values)
        return HTMLResponse(text, status, {**HEADERS, "Cache-Control": "no-store"})

    async def asset(self, request: Request) -> Response:
        """A file of `static/`; under its own digest it never changes."""
        asset = self.assets.get(request.path_params["name"])
        if asset is None:
            raise HTTPException(404, f"no file {request.path_params['name']}")
        is_this = request.query_params.get("v") == asset.digest
        headers = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable" if is_this else "no-cache"}
        return Response(asset.content, headers=headers, media_type=asset.media_type)


def look() -> Look:
    assets = {file.name: _asset(file.name, file.read_bytes()) for file in (files(__package__) / "static").iterdir()}
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in (utc, ago, lasting, dollars, pretty)}
    environment.globals |= {
        "asset": lambda name: f"{STATIC}/{name}?v={assets[name].digest}",
        "release": release(),
    }
    return Look(environment, assets)


def _asset(name: str, content: bytes) -> Asset:
    return Asset(content, MEDIA_TYPES[name.rpartition(".")[2]], sha256(content).hexdigest()[:16])


def utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} UTC"


def ago(at: datetime, now: datetime) -> str:
    """`3 s ago`, `in 2 min`."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{_coarse(seconds)} ago" if seconds > 0 else f"in {_coarse(-seconds)}"


def _coarse(seconds: float) -> str:
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= size)
    return f"{int(seconds // size)} {unit}"


def lasting(ms: float) -> str:
    """`<0.01 ms`, `0.04 ms`, `4.2 ms`, `12 ms`, `1.25 s`, `3 min 20 s`, `2 h 5 min`."""
    if ms < 0.005:
        return "<0.01 ms"
    if ms < 999.5:
        decimals = 2 if ms < 0.995 else 1 if ms < 9.95 else 0
        return f"{ms:.{decimals}f} ms"
    if ms < 59_995:
        return f"{ms / 1000:.2f} s"
    return _two_units(round(ms / 1000))


def _two_units(seconds: int) -> str:
    at = next(at for at, (size, _) in enumerate(UNITS) if seconds >= size)
    (size, unit), (next_size, next_unit) = UNITS[at], UNITS[at + 1]
    rest = seconds % size // next_size
    return f"{seconds // size} {unit}" + (f" {rest} {next_unit}" if rest else "")


def dollars(usd: float) -> str:
    """As many places as it takes to see something."""
    return f"${usd:,.2f}" if usd == 0 or usd >= 10 else f"${usd:,.4f}" if usd >= 0.01 else f"${usd:.6f}"


def pretty(content: Any) -> str:
    """JSON for people; of very long ones the beginning, unbroken: line breaks may make it a hundred times longer."""
    encoded = msgspec.json.encode(content)
    text = (msgspec.json.format(encoded, indent=2) if len(encoded) <= PRETTY_MAX else encoded).decode()
    return text if len(text) <= PRETTY_MAX else f"{text[:PRETTY_MAX]}\n… {len(text) - PRETTY_MAX:,} more characters"
