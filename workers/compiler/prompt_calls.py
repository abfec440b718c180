"""What the calls of models in user code say of themselves, read in the source before a worker starts.

Only what is surely wrong is refused: in a function that is no wrapper, a call on the parameter that is the Run, with
what is written out in it. Whatever is decided when it runs is looked at when it runs.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any, Final, get_type_hints

from prompts import PromptError, Prompts, check_names
from schemas.origin import line_of
from service.core.errors import WiringError
from workers.compiler.plan import Free, Plan
from workers.compiler.reading import bounds
from workers.kit.flow import Node
from workers.kit.run import Run
from workers.models.structured import schema_of

CALLS: Final = ("ask", "stream", "embed")
OPTIONS: Final = frozenset({"returns", "model"})


def check_calls(plan: Plan, prompts: Prompts) -> None:
    """Raises WiringError, with file and line, for a call of a node or a body that can't be answered whatever happens:

    there is no such prompt, version or alias; a variable that the prompt declares is missing, or another is given;
    `returns` is missing, or is nothing that a model can reply.
    """
    seen: set[Node] = set()
    bodies = [part.body for part in plan if isinstance(part, Free)]
    left = [*(bound.node for bound in bounds(plan)), *bodies]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, FunctionType) and not hasattr(node, "__wrapped__"):
            left.extend(_check(node, _run_of(node, is_body=node in bodies), prompts))


def _check(node: FunctionType, run: str | None, prompts: Prompts) -> Iterator[Node]:
    """Checks the calls in one function, whose Run has this name; gives the nodes that it runs, and what it calls."""
    definition = _source(node) if run else None
    if definition is None or run is None or _is_bound(definition, run):
        return
    for call in _calls(definition):
        match call.func:
            case ast.Attribute(attr=name, value=ast.Attribute(attr="llm", value=ast.Name(id=owner))) if owner == run:
                if name in CALLS:
                    _check_call(node, call, prompts)
            case ast.Attribute(attr="step", value=ast.Name(id=owner)) if owner == run and call.args:
                if isinstance(step := _value(node, call.args[0]), FunctionType):
                    yield step
            case ast.Name() as called if isinstance(helper := _value(node, called), FunctionType):
                yield helper


def _source(node: FunctionType) -> ast.AsyncFunctionDef | None:
    """The function as it is written, its lines those of its file."""
    try:
        lines, first = inspect.getsourcelines(node)
        (definition,) = ast.parse(textwrap.dedent("".join(lines))).body
    except (OSError, TypeError, SyntaxError, ValueError):  # no file, or a piece of a line
        return None
    ast.increment_lineno(definition, first - 1)
    return definition if isinstance(definition, ast.AsyncFunctionDef) and definition.name == node.__name__ else None


def _run_of(node: FunctionType, *, is_body: bool) -> str | None:
    """The name of the parameter that is the Run; of a body that doesn't annotate it the first."""
    try:
        hints = get_type_hints(node)
    except (NameError, TypeError, AttributeError):
        return None
    names = [name for name, hint in hints.items() if hint is Run and name != "return"]
    if is_body and not names and (first := node.__code__.co_varnames[:1]) and first[0] not in hints:
        return first[0]
    return names[0] if len(names) == 1 else None


def _is_bound(definition: ast.AsyncFunctionDef, name: str) -> bool:
    """Whether the name may mean something else somewhere in the function: then nothing is sure."""
    for part in ast.walk(definition):
        match part:
            case ast.Name(id=other, ctx=ast.Store() | ast.Del()) if other == name:
                return True
            case ast.FunctionDef(args=args) | ast.AsyncFunctionDef(args=args) | ast.Lambda(args=args):
                if part is not definition and name in {
                    node.arg for node in ast.walk(args) if isinstance(node, ast.arg)
                }:
                    return True
            case ast.ExceptHandler(name=other) | ast.MatchAs(name=other) | ast.MatchStar(name=other) if other == name:
                return True
            case ast.MatchMapping(rest=other) if other == name:
                return True
            case ast.Import() | ast.ImportFrom() if name in {alias.asname or alias.name for alias in part.names}:
                return True
            case ast.ClassDef():
                return True
    return False


def _calls(part: ast.AST) -> Iterator[ast.Call]:
    """Every call in it but those in a `try` that catches something: there a failure may be what is wanted."""
    if isinstance(part, ast.Try | ast.TryStar) and part.handlers:
        for rest in (*part.handlers, *part.orelse, *part.finalbody):
            yield from _calls(rest)
        return
    if isinstance(part, ast.With | ast.AsyncWith):  # `suppress` and its like
        return
    if isinstance(part, ast.Call):
        yield part
    for child in ast.iter_child_nodes(part):
        yield from _calls(child)


def _check_call(node: FunctionType, call: ast.Call, prompts: Prompts) -> None:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    is_complete = len(keywords) == len(call.keywords) and len(call.args) == 1
    match keywords.get("model"):
        case ast.Constant(value=str(alias)):
            _refuse(node, call, lambda: prompts.chain(alias))
    if isinstance(call.func, ast.Attribute) and call.func.attr == "embed":
        return
    match call.args:
        case [ast.Constant(value=str(name))]:
            _refuse(node, call, lambda: _check_prompt(name, keywords, prompts, is_complete))
    if is_complete and "returns" not in keywords:
        raise WiringError(f"{_where(node, call)} does not say what it gives. Write returns=str or a Struct of yours.")
    if (returns := _value(node, keywords.get("returns"))) not in (None, str):
        _refuse(node, call, lambda: schema_of(returns))


def _check_prompt(name: str, keywords: Mapping[str, ast.expr], prompts: Prompts, is_complete: bool) -> None:
    prompt = prompts.get(name)
    if is_complete:
        check_names(prompt, keywords.keys() - OPTIONS)


def _refuse(node: FunctionType, call: ast.Call, check: Callable[[], object]) -> None:
    try:
        check()
    except (PromptError, WiringError) as error:
        raise WiringError(f"{_where(node, call)}: {error}") from error


def _where(node: FunctionType, call: ast.Call) -> str:
    return line_of(inspect.getsourcefile(node) or node.__module__, call.lineno)


def _value(node: FunctionType, name: ast.expr | None) -> Any:
    """What a plain name means at the top of the node's module; None for anything else."""
    if not isinstance(name, ast.Name) or name.id in (*node.__code__.co_varnames, *node.__code__.co_freevars):
        return None
    builtin = node.__globals__.get("__builtins__", {})
    known = builtin if isinstance(builtin, dict) else vars(builtin)
    return node.__globals__.get(name.id, known.get(name.id))
