"""Every JSON answer that a test gets is held to the Struct that the table of routes names for it."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
from msgspec import convert, json, to_builtins
from starlette.routing import Match, Route

from service.http.openapi import Operation
from service.http.routes import OPERATIONS


@cache
def _routes() -> tuple[tuple[Route, Operation], ...]:
    return tuple((Route(each.path, each.endpoint, methods=[each.method]), each) for each in OPERATIONS)


def operation_of(method: str, path: str) -> Operation | None:
    scope = {"type": "http", "method": method, "path": path.rstrip("/") or "/", "headers": []}
    return next((operation for route, operation in _routes() if route.matches(scope)[0] is Match.FULL), None)


def unknown(said: Any, known: Any, path: str = "$") -> Iterator[str]:
    """The fields of an answer that its Struct does not have. Extensions stand beside the attributes of an event."""
    if isinstance(said, list) and isinstance(known, list):
        for index, (one, other) in enumerate(zip(said, known, strict=True)):
            yield from unknown(one, other, f"{path}[{index}]")
    elif isinstance(said, dict) and isinstance(known, dict):
        for name, value in said.items():
            if name in known:
                yield from unknown(value, known[name], f"{path}.{name}")
            elif "specversion" not in said or "_" in name:
                yield f"{path}.{name}"


async def hold(response: httpx.Response) -> None:
    """For the hooks of a client. Raises AssertionError, or ValidationError with the path of what does not fit."""
    operation = operation_of(response.request.method, response.request.url.path)
    is_told = operation is not None and response.status_code in operation.statuses
    if operation is None or operation.answer is None or not is_told or response.request.method == "HEAD":
        return
    said = json.decode(await response.aread())
    surplus = list(unknown(said, to_builtins(convert(said, operation.answer))))
    assert not surplus, f"{operation.method} {operation.path} answers with {surplus}, which {operation.answer} has not"
