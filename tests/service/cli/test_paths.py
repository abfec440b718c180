"""What the command line asks for is in the API's table of routes: a path that changes there fails here first."""

import ast
from collections.abc import Iterator
from uuid import UUID

import pytest
from starlette.routing import Match

from service.http.routes import routes
from tests.processes import ROOT

METHODS = ("GET", "POST", "PUT", "DELETE")
ANY_VALUE = str(UUID(int=1))  # fits wherever a path has a place for something
PAGES = {"print_page": "GET"}  # these are told the path alone


def path_of(node: ast.expr) -> str | None:
    """The path that a literal or an f-string stands for; None where it is none."""
    match node:
        case ast.Constant(value=str(text)):
            pass
        case ast.JoinedStr(values=parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else ANY_VALUE for part in parts)
        case _:
            return None
    return text if text.startswith("/") else None


def requests_of(source: str) -> Iterator[tuple[str, str]]:
    """Every method and path that a module gives to a call, of a conditional expression both."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        told = [node.value for node in call.args if isinstance(node, ast.Constant) and node.value in METHODS]
        method = PAGES.get(call.func.id) if isinstance(call.func, ast.Name) else None
        for node in call.args:
            for each in (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,):
                path = path_of(each)
                if path is not None and (told or method):
                    yield str(told[0] if told else method), path


def is_routed(method: str, path: str) -> bool:
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in routes())


ASKED = sorted(
    {
        (file.name, *request)
        for file in (ROOT / "service/cli").glob("*.py")
        for request in requests_of(file.read_text(encoding="utf-8"))
    }
)


def test_its_requests_are_found() -> None:
    assert len(ASKED) > 15
    assert {("operate.py", "DELETE", "/dead-letters"), ("catalog.py", "GET", "/types")} <= set(ASKED)
    assert ("audit.py", "GET", "/operations") in ASKED


@pytest.mark.parametrize(("file", "method", "path"), ASKED)
def test_what_it_asks_is_routed(file: str, method: str, path: str) -> None:
    assert is_routed(method, path), f"service/cli/{file} asks for {method} {path}"


def test_what_is_not_in_the_table_would_be_found() -> None:
    assert not is_routed("POST", "/types")
    assert not is_routed("GET", "/dead-letter")
    assert list(requests_of('ask(settings, "GET", f"/a/{b}" if b else "/c")')) == [
        ("GET", f"/a/{ANY_VALUE}"),
        ("GET", "/c"),
    ]
