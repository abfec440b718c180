"""The shape of the tree: import arrows, one home per library, small files, SQL and prompts in their folders."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import prompts
import sql
from service.core.declared import variables_of_providers, variables_of_settings
from service.core.settings import Settings, load, variables

ROOT: Final = Path(__file__).parent.parent
OURS: Final = ("schemas", "prompts", "sql", "service", "workers")

# The rooms, from the ground up: one may import what stands on an earlier line, and itself, never its neighbours. A
# module is in the room with the longest name that it is or stands below.
ROOMS: Final = (
    ("schemas", "prompts", "sql"),
    ("service.core",),
    ("service.access", "service.intake", "service.documents", "service.feed", "service.embedded"),
    ("service.operations",),
    ("workers.models", "workers.simulator"),
    ("workers.web",),
    ("workers.kit",),
    ("workers.compiler",),
    ("workers.nodes", "workers.providers"),
    ("workers.pipelines",),
    ("workers.engine",),
    ("workers", "workers.bootstrap"),
    ("workers.__main__",),
)
# The front is the top of service: nobody imports it but the door in service/__init__.py, which opens when it is called.
FRONT: Final = (
    ("service.http", "service.cli"),
    ("service.dashboard",),
    ("service.http.app",),
    ("service.http.serve",),
    ("service", "service.__main__"),
)
DOORS: Final = {("service", "service.http.app"), ("workers", "workers.bootstrap")}

# Besides the standard library: what a person's own files may import of ours.
USER_PLACES: Final = {
    "schemas.events": ("schemas", "schemas.events"),
    "workers.nodes": ("schemas", "schemas.events", "workers.kit", "workers.nodes"),
    "workers.pipelines": ("schemas", "schemas.events", "workers.kit", "workers.nodes", "workers.pipelines"),
}

# Where each outside library is at home; msgspec is at home everywhere.
HOMES: Final = {
    "aiobreaker": ("workers.models.circuit_breaker",),
    "aiohttp": ("workers.models.sdk",),
    "anthropic": ("workers.models.anthropic",),
    "arq": ("workers.engine",),
    "asyncpg": ("service", "workers.engine"),
    "click": ("service.cli",),
    "genai_prices": ("workers.models.prices",),
    "httpcore": ("workers.web",),
    "httpx": ("workers.web", "service.cli"),
    "httpx2": ("workers.models.sdk",),
    "jinja2": ("prompts", "service.dashboard.look"),
    "msgspec": OURS,
    "openai": ("workers.models.openai",),
    "prometheus_client": ("service.http.metrics",),
    "pgvector": ("service.documents.vectors", "workers.engine.settle"),
    "redis": ("service", "workers.engine"),
    "rich": ("service.cli",),
    "starlette": ("service.http", "service.dashboard", "workers.simulator"),
    "uvicorn": ("service.http.serve", "service.http.connections", "workers.simulator.serve"),
    "watchfiles": ("service.cli.up",),
}

FILE_LINES_MAX: Final = 250
FUNCTION_LINES_MAX: Final = 50
# The one place where any failure of user code becomes an outcome; the net below it, for our own bugs while an outcome
# is decided and while rows are written; the one that starts parts again; what a stranger's error says of itself; and
# what a user's file raises at its import.
CATCH_ALL: Final = {
    "workers.engine.executor",
    "workers.engine.retry",
    "workers.engine.ending",
    "service.core.group_commit",
    "service.core.supervise",
    "service.core.errors",
    "schemas.catalog",
}
STATEMENT: Final = re.compile(
    r"\b(select\b.+\bfrom|insert\s+into|delete\s+from|update\s+\w+(\s+\w+)?\s+set|truncate\s+\w+"
    r"|(create|alter|drop)\s+(table|index|database|schema|extension|sequence|role))\b",
    re.IGNORECASE | re.DOTALL,
)


def _name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules() -> dict[str, ast.Module]:
    files = sorted(file for folder in OURS for file in (ROOT / folder).rglob("*.py"))
    return {_name_of(file): ast.parse(file.read_text(encoding="utf-8"), str(file)) for file in files}


MODULES: Final[Mapping[str, ast.Module]] = _modules()


def _imported(tree: ast.Module) -> Iterator[str]:
    """Every module a file imports, those inside functions too; `from a import b` is a.b where that is a module."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                below = [f"{module}.{alias.name}" for alias in node.names if alias.name not in _own(module)]
                modules = [name for name in below if name in MODULES]
                yield from modules or [module]
            case ast.ImportFrom():
                raise AssertionError(f"a relative import: {ast.unparse(node)}")


def _own(package: str) -> set[str]:
    """What a package's door hands out under the name of one of its modules, as `workers.kit` does with `pipeline`."""
    door = MODULES.get(package, ast.Module([], []))
    return {alias.name for node in door.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def _below(module: str, places: tuple[str, ...]) -> bool:
    return any(module == folder or module.startswith(f"{folder}.") for folder in places)


IMPORTS: Final = {name: sorted(set(_imported(tree))) for name, tree in MODULES.items()}
ARROWS: Final = [(name, each) for name, found in IMPORTS.items() for each in found if _below(each, OURS)]


def _room(module: str, lines: tuple[tuple[str, ...], ...]) -> tuple[int, str]:
    """(line, room): the longest name of a room that the module is or stands below; (-1, "") where there is none."""
    fitting = [(line, room) for line, rooms in enumerate(lines) for room in rooms if _below(module, (room,))]
    return max(fitting, key=lambda found: len(found[1]), default=(-1, ""))


def _goes_up(module: str, other: str, lines: tuple[tuple[str, ...], ...]) -> bool:
    here, there = _room(module, lines), _room(other, lines)
    return here[1] != there[1] and here[0] <= there[0]


def _is_front(module: str) -> bool:
    """Whether a room of the front is the nearest one: service/core is below, though it stands in service."""
    return len(_room(module, FRONT)[1]) > len(_room(module, ROOMS)[1])


def test_the_reading_of_imports_sees_those_inside_functions() -> None:
    tree = ast.parse(
        "import a.b\nfrom service.core import streams\ndef f():\n    from workers.engine import lease, no_module\n"
    )
    assert sorted(_imported(tree)) == ["a.b", "service.core.streams", "workers.engine.lease"]
    assert set(ARROWS) >= DOORS


def test_imports_go_one_way() -> None:
    arrows = [(module, other) for module, other in ARROWS if (module, other) not in DOORS]
    ground = [(module, other) for module, other in arrows if not _is_front(module)]
    assert not [(module, other) for module, other in ground if _is_front(other) or _goes_up(module, other, ROOMS)]
    front = [(module, other) for module, other in arrows if _is_front(module) and _is_front(other)]
    assert not [(module, other) for module, other in front if _goes_up(module, other, FRONT)]


def test_service_imports_nothing_of_workers() -> None:
    assert not [arrow for arrow in ARROWS if _below(arrow[0], ("service",)) and _below(arrow[1], ("workers",))]


def test_every_module_has_a_room() -> None:
    """service/ and workers/ are no rooms for what has none: what stands there is said here."""
    own = {
        module for module in MODULES if module.count(".") == 1 and module.partition(".")[0] in ("service", "workers")
    }
    rooms = {room for line in (*ROOMS, *FRONT) for room in line}
    assert own - rooms == {"workers.health"}


def test_nothing_imports_in_a_circle() -> None:
    graph = {
        module: [other for each, other in ARROWS if each == module and (each, other) not in DOORS] for module in MODULES
    }
    list(TopologicalSorter(graph).static_order())


def test_no_rooms_import_each_other_in_a_circle() -> None:
    rooms = {module: (_room(module, FRONT) if _is_front(module) else _room(module, ROOMS))[1] for module in MODULES}
    graph: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for module, other in ARROWS:
        if (module, other) not in DOORS and rooms[module] != rooms[other]:
            graph[rooms[module]].add(rooms[other])
    list(TopologicalSorter(graph).static_order())


def test_user_code_and_engine_do_not_know_each_other() -> None:
    handed_in = ("workers.nodes", "workers.pipelines", "workers.providers")
    assert not [arrow for arrow in ARROWS if _below(arrow[0], ("workers.engine",)) and _below(arrow[1], handed_in)]


@pytest.mark.parametrize("folder", USER_PLACES)
def test_user_code_imports_the_kit_by_its_door(folder: str) -> None:
    allowed = USER_PLACES[folder]
    own = tuple(each for each in allowed if each not in ("schemas", "workers.kit"))
    wrong = [
        (module, other)
        for module, other in ARROWS
        if _below(module, (folder,)) and other not in allowed and not _below(other, own)
    ]
    assert not wrong


CLASSES: Final = {
    (module, node.name): node
    for module, tree in MODULES.items()
    for node in tree.body
    if isinstance(node, ast.ClassDef)
}
# Two errors of theirs are also of a kind that is caught as a whole.
DEEPER: Final = {("workers.models.call_log", "BudgetSpent"), ("service.core.errors", "TooMany")}


def _defined(module: str, name: str) -> tuple[str, str] | None:
    """Where the class of ours is that a module knows by this name."""
    if (module, name) in CLASSES:
        return module, name
    for node in MODULES[module].body if module in MODULES else ():
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name:
                return _defined(str(node.module), alias.name) if isinstance(node, ast.ImportFrom) else None
    return None


def _depth(place: tuple[str, str]) -> int:
    """How many classes of ours stand above one, one above the other."""
    names = (base.value if isinstance(base, ast.Subscript) else base for base in CLASSES[place].bases)
    above = (_defined(place[0], name.id) for name in names if isinstance(name, ast.Name))
    return max((1 + _depth(each) for each in above if each), default=0)


def test_nothing_inherits_from_what_inherits() -> None:
    depths = {place: _depth(place) for place in CLASSES if not _below(place[0], tuple(USER_PLACES))}
    assert depths["service.core.errors", "Reject"] == _depth(("workers.nodes.pager", "Pager")) == 1
    assert {place for place, depth in depths.items() if depth > 1} == DEEPER


def test_a_library_has_one_home() -> None:
    outside = [
        (module, library)
        for module, found in IMPORTS.items()
        for library in {each.partition(".")[0] for each in found}
        if library not in sys.stdlib_module_names and library not in OURS
    ]
    assert {library for _, library in outside} == HOMES.keys()
    assert not [(module, library) for module, library in outside if not _below(module, HOMES[library])]
    deserted = [
        (library, home)
        for library, homes in HOMES.items()
        for home in homes
        if not any(each == library and _below(module, (home,)) for module, each in outside)
    ]
    assert set(deserted) <= {("msgspec", "sql")}


def test_a_node_is_imported_without_engine_or_servers() -> None:
    heavy = ("workers.engine", "workers.bootstrap", "service.http", "arq", "starlette", "uvicorn")
    program = "import sys, workers.pipelines.support; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "workers.nodes.triage" in process.stdout.split()
    assert not [module for module in process.stdout.split() if _below(module, heavy)]


def test_files_and_functions_are_short() -> None:
    files = {
        file: file.read_text(encoding="utf-8").count("\n") for folder in OURS for file in (ROOT / folder).rglob("*.py")
    }
    assert not {file: lines for file, lines in files.items() if lines > FILE_LINES_MAX}
    functions = [
        (module, node.name, (node.end_lineno or 0) - node.lineno + 1)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not [function for function in functions if function[2] > FUNCTION_LINES_MAX]


def test_no_two_tests_have_the_same_name() -> None:
    """pytest imports each by its name alone: of two it takes one for the other."""
    times = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in times.items() if count > 1] == []


def test_every_module_says_what_it_is_in_a_line_or_more() -> None:
    assert not [module for module, tree in MODULES.items() if not ast.get_docstring(tree)]


def _docstrings(tree: ast.Module) -> set[int]:
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def _texts(tree: ast.Module) -> Iterator[str]:
    """Every string of a file that is no docstring; of an f-string the whole, blanks as `x`."""
    skipped = _docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in node.values)
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def test_a_statement_is_known_when_it_is_seen() -> None:
    tree = ast.parse(
        '"""select a from b"""\nx = f"update {t} set a = 1"\ny = "insert " "into b"\nz = "to select one"\n'
    )
    assert [bool(STATEMENT.search(text.replace("?", "x"))) for text in _texts(tree)] == [True, True, False]


def test_sql_stands_in_sql_files_only() -> None:
    assert not [(module, text) for module, tree in MODULES.items() for text in _texts(tree) if STATEMENT.search(text)]


def _catches_all(node: ast.AST) -> bool:
    match node:
        case ast.ExceptHandler(type=None):
            return True
        case ast.ExceptHandler(type=ast.expr() as kind):
            return _names_all(kind)
        case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=kinds):
            return any(_names_all(each) for each in kinds)
    return False


def _names_all(kind: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id in ("Exception", "BaseException") for node in ast.walk(kind))


def test_everything_is_caught_where_the_floor_is_only() -> None:
    broad = [module for module, tree in MODULES.items() for node in ast.walk(tree) if _catches_all(node)]
    assert sorted(broad) == sorted(CATCH_ALL)


def test_every_prompt_is_asked_for() -> None:
    there = set(prompts.load(ROOT / "prompts").versions)
    user_code = [tree for module, tree in MODULES.items() if _below(module, ("workers.nodes", "workers.pipelines"))]
    asked = {
        call.args[0].value.partition("@")[0]
        for tree in user_code
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("ask", "stream")
        if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    }
    assert asked == there


def _topics(module: str) -> set[str]:
    """The files of sql/queries a module reads from, itself or by the SQL it imports."""
    tree = MODULES[module]
    own = {
        str(call.args[0].value)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "queries"
        if isinstance(call.args[0], ast.Constant)
    }
    lent = [
        str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "SQL" for alias in node.names)
    ]
    return own.union(*(_topics(each) for each in lent))


def test_a_file_of_statements_is_named_by_a_module_that_runs_them() -> None:
    callers = {topic: {module for module in MODULES if topic in _topics(module)} for topic in sql.topics()}
    assert not [topic for topic, modules in callers.items() if not any(topic in name.split(".") for name in modules)]


def test_every_statement_is_used() -> None:
    used = {
        (topic, node.slice.value)
        for module, tree in MODULES.items()
        for topic in _topics(module)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
        if not isinstance(node.value, ast.Name) or node.value.id.endswith("SQL")
    }
    assert not [(topic, name) for topic in sql.topics() for name in sql.queries(topic) if (topic, name) not in used]


def of_users() -> set[str]:
    """What providers and Settings of the user's own name; `callboard up` writes what is missing of it."""
    providers = variables_of_providers().values()
    return {*variables_of_settings(), *(name for known in providers for name in (*known.keys, *known.options))}


def test_env_example_lists_every_setting_with_its_default() -> None:
    lines = (ROOT / "deploy" / "env.example").read_text(encoding="utf-8").splitlines()
    found = [match for line in lines if (match := re.match(r"# ?([A-Z_]+)=(.*)$|([A-Z_]+)=(.*)$", line))]
    said = [(match[1] or match[3], match[2] or match[4] or "") for match in found]
    ours = [(name, text) for name, text in said if name not in of_users()]
    settings = variables()
    assert sorted(name for name, _ in ours) == sorted(settings)
    assert {name for name, _ in said} >= {"PAGE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "LOCAL_JSON"}
    standard = Settings()
    for name, text in ours:
        default = getattr(standard, settings[name])
        assert (getattr(load({name: text}), settings[name]), bool(text)) == (default, default != ""), name


def test_every_library_used_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["embedded"]]
    declared = {re.split(r"[^A-Za-z0-9_-]", line)[0].replace("-", "_") for line in wanted}
    assert HOMES.keys() - declared == {
        "aiohttp",
        "httpcore",
        "httpx2",
    }  # they come with the SDKs and httpx, whose clients they are
