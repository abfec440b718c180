"""Templates, the files they use, and the headers every page carries."""

from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from service.dashboard import words
from service.release import release

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
    """Made once with the routes."""

    environment: Environment
    assets: Mapping[str, Asset]

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self.environment.get_template(template).render(values)
        return HTMLResponse(text, status, {**HEADERS, "Cache-Control": "no-store"})

    async def asset(self, request: Request) -> Response:
        """A file of `static/`; under its own digest it never changes."""
        found = self.assets.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, f"no file {request.path_params['name']}")
        is_this = request.query_params.get("v") == found.digest
        headers = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable" if is_this else "no-cache"}
        return Response(found.content, headers=headers, media_type=found.media_type)


def look() -> Look:
    assets = {each.name: _asset(each.name, each.read_bytes()) for each in (files(__package__) / "static").iterdir()}
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in ("utc", "ago", "lasting", "dollars", "pretty")}
    environment.globals |= {
        "asset": lambda name: f"{STATIC}/{name}?v={assets[name].digest}",
        "release": release(),
    }
    return Look(environment, assets)


def _asset(name: str, content: bytes) -> Asset:
    return Asset(content, MEDIA_TYPES[name.rpartition(".")[2]], sha256(content).hexdigest()[:16])
