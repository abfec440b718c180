"""Filters over metadata: decoded by type, told to Postgres as a JSON path from which their values are kept apart."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError, convert, field, json

from schemas.text import BadEvent, misfit

DEPTH_MAX: Final = 8
COMPARISONS_MAX: Final = 100
VALUES_MAX: Final = 1000  # values in all comparisons of a filter: Postgres compares each with each document
GROUPS: Final = ("and", "or", "not")
OPERATORS: Final = {"eq": "==", "ne": "==", "in_": "==", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}

Scalar = str | int | float | bool
Ordered = str | int | float


class Comparison(Struct, frozen=True, forbid_unknown_fields=True):
    """What must hold of a field, all of it. A list in a field fits where one of its items does."""

    eq: Scalar | UnsetType = UNSET
    ne: Scalar | UnsetType = UNSET
    lt: Ordered | UnsetType = UNSET
    lte: Ordered | UnsetType = UNSET
    gt: Ordered | UnsetType = UNSET
    gte: Ordered | UnsetType = UNSET
    in_: Annotated[list[Scalar], Meta(max_length=1000)] | UnsetType = field(default=UNSET, name="in")


class Where(Struct, frozen=True):
    """A JSON path, and the values of its variables as a JSON object."""

    path: str
    values: str


def compiled(filter_: Mapping[str, Any], path: str = "$.filter") -> Where | None:
    """None where everything fits. Raises BadEvent 422 with the place below `path`."""
    values: list[Any] = []
    text = _all(filter_, path, 1, values) if filter_ else ""
    count = sum(len(value) if isinstance(value, list) else 1 for value in values)
    if count > VALUES_MAX:
        raise BadEvent(422, f"a filter names at most {VALUES_MAX} values in all, this one {count}", path)
    named = {f"v{index}": value for index, value in enumerate(values)}
    return Where(f"$ ? ({text})", json.encode(named).decode()) if filter_ else None


def _all(filter_: Any, path: str, depth: int, values: list[Any]) -> str:
    if not isinstance(filter_, Mapping) or not filter_:
        raise BadEvent(422, "a filter is an object that names fields, `and`, `or` or `not`", path)
    if depth > DEPTH_MAX:
        raise BadEvent(422, f"a filter is at most {DEPTH_MAX} levels deep", path)
    parts = []
    for name, condition in filter_.items():
        at = f"{path}.{name}"
        parts.append(
            _group(name, condition, at, depth, values) if name in GROUPS else _field(name, condition, at, values)
        )
    return " && ".join(parts)


def _group(name: str, conditions: Any, path: str, depth: int, values: list[Any]) -> str:
    if not isinstance(conditions, list) or not conditions:
        raise BadEvent(422, f"`{name}` has a list of filters", path)
    parts = [f"({_all(part, f'{path}[{index}]', depth + 1, values)})" for index, part in enumerate(conditions)]
    return f"!({' || '.join(parts)})" if name == "not" else f"({(' && ' if name == 'and' else ' || ').join(parts)})"


def _field(name: str, condition: Any, path: str, values: list[Any]) -> str:
    """`exists` is true or false, where a comparison of two types alone is unknown, and so is its opposite."""
    try:
        comparison = convert(condition, Comparison)
    except ValidationError as error:
        raise misfit(error, path) from error
    parts = []
    for operator, sign in OPERATORS.items():
        if (value := getattr(comparison, operator)) is not UNSET:
            items = "[*]" if operator == "in_" else ""
            no = "!" if operator == "ne" else ""
            parts.append(f"{no}exists(@.{json.encode(name).decode()} ? (@ {sign} $v{len(values)}{items}))")
            values.append(value)
    if not parts:
        raise BadEvent(422, "name at least one of eq, ne, lt, lte, gt, gte, in", path)
    if len(values) > COMPARISONS_MAX:
        raise BadEvent(422, f"a filter has at most {COMPARISONS_MAX} comparisons", path)
    return " && ".join(parts)
