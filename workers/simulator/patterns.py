"""A text that a regular expression finds, for replies whose schema has a `pattern`."""

import re
from random import Random
from typing import Any, Final

PRINTABLE: Final = "".join(map(chr, range(32, 127)))
REPEAT_MAX: Final = 4


def matching(pattern: str, random: Random) -> str:
    """A text made along the pattern; look-arounds and inner anchors are passed over, so it may fail to match."""
    from re import _parser  # type: ignore[attr-defined]  # the only parser of Python's own patterns

    return _along(_parser.parse(pattern), random, {})


def _along(parts: Any, random: Random, groups: dict[int, str]) -> str:
    return "".join(_one(str(kind), what, random, groups) for kind, what in parts)


def _one(kind: str, what: Any, random: Random, groups: dict[int, str]) -> str:
    match kind:
        case "LITERAL":
            return chr(what)
        case "ANY" | "NOT_LITERAL":
            return random.choice([each for each in PRINTABLE[1:] if ord(each) != what])
        case "IN":
            return random.choice(_set(what))
        case "BRANCH":
            return _along(random.choice(what[1]), random, groups)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            low, high, inner = what
            times = random.randint(low, min(int(high), low + REPEAT_MAX))
            return "".join(_along(inner, random, groups) for _ in range(times))
        case "SUBPATTERN":
            text = _along(what[-1], random, groups)
            groups[what[0]] = text
            return text
        case "ATOMIC_GROUP":
            return _along(what, random, groups)
        case "GROUPREF":
            return groups.get(what, "")
    return ""


def _set(members: Any) -> str:
    named = "".join(chr(code) for kind, what in members for code in _ends(str(kind), what))
    without = any(str(kind) == "NEGATE" for kind, _ in members)
    fitting = [each for each in PRINTABLE + named if any(_in(each, str(kind), what) for kind, what in members)]
    return "".join(set(PRINTABLE) - set(fitting) if without else fitting) or "?"


def _ends(kind: str, what: Any) -> tuple[int, ...]:
    return (what,) if kind == "LITERAL" else tuple(what) if kind == "RANGE" else ()


def _in(char: str, kind: str, what: Any) -> bool:
    match kind:
        case "LITERAL":
            return bool(ord(char) == what)
        case "RANGE":
            return bool(what[0] <= ord(char) <= what[1])
        case "CATEGORY":
            name = str(what).rpartition("_")[2]
            found = re.match({"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}[name], char) is not None
            return found is not ("_NOT_" in str(what))
    return False
