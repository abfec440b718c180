"""What is compared between processes does not hang on the hash seed, and a step without sets keeps the key it had."""

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, json

import prompts
from schemas import Event
from tests.processes import ROOT
from tests.programs import event_type
from tests.workers.kit.runs import open_run, with_deps
from workers.kit import Run
from workers.kit.ordered import in_order, ordered
from workers.kit.run import as_step

PROMPT: Final = """+++
model = "fast"
max_tokens = 10
variables = ["tags", "ticket", "groups"]
+++
{{ tags }} {% for tag in ticket.tags %}<{{ tag }}>{% endfor %} {{ ticket }} {{ groups }}
{{ "alpha" in tags }} {{ tags | length }} {{ ticket.tags | join(",") }}
"""


class Heard(Event, tag="heard", frozen=True):
    tags: frozenset[str]


class Mood(Enum):
    GOOD = "good"
    CALM = "calm"
    BAD = "bad"


class Tagged(Struct, frozen=True):
    text: str = "text"
    tags: frozenset[str] = frozenset({"alpha", "beta", "gamma", "delta"})


class Plain(Struct, frozen=True):
    """Makes itself known: no other one is made behind the user's back."""

    words: list[str]

    def __post_init__(self) -> None:
        self.words.append("made")


class Pair(Struct, frozen=True):
    tags: set[str]
    plain: Plain


@dataclass(frozen=True)
class Pointed:
    tags: frozenset[str] = frozenset({"one", "two", "three"})


WITH_SETS: Final[dict[str, Any]] = {
    "a set": {"alpha", "beta", "gamma"},
    "of Structs": {Tagged("a"), Tagged("b"), Tagged("c")},
    "of enums": set(Mood),
    "of sets": {frozenset({"a", "b"}), frozenset({"c", "d", "e"}), frozenset({"b", "d"})},
    "of mixed types": {"1", 1, None, 2.5},
    "in a Struct": Tagged(),
    "in a dataclass": [Pointed()],
    "in a dict": {"z": {"x", "y"}, "a": ({"p", "q"},)},
}
WITHOUT: Final[dict[str, Any]] = {
    "a dict in its own order": {"z": 1, "a": {"y": 2, "b": 3}},
    "keys that are no text": {2: "b", 1: "a"},
    "a Struct": Plain(["a"]),
    "lists": [[1, "a", None, 2.5], (1, 2), b"bytes"],
}


async def node(value: Any, /) -> None: ...


async def keys(values: dict[str, Any]) -> list[str]:
    async with open_run() as run:
        body: Run = as_step(run, "")
        for value in values.values():
            await body.step(node, value)
        return [step.step for step in run._deps.facts.steps]


async def emitted() -> str:
    async with open_run() as run:
        own = as_step(with_deps(run, catalog={"heard": event_type(Heard)}), "say")
        own.emit(Heard(frozenset({"alpha", "beta", "gamma"})))
        return bytes(own._effects.children[0].data).decode()


def rendered(folder: Path) -> str:
    prompt = prompts.load(folder).get("sort")
    variables = {"tags": WITH_SETS["a set"], "ticket": Tagged(), "groups": [WITH_SETS["of sets"], {"of": set("abc")}]}
    return prompts.render(prompt, in_order(variables)).user


def main(folder: Path) -> None:
    """What the test compares, as this process sees it."""
    posted = json.encode(ordered(list(WITH_SETS.values()))).decode()
    print(json.encode([asyncio.run(keys(WITH_SETS)), rendered(folder), posted, asyncio.run(emitted())]).decode())


def test_two_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "v1.md").write_text(PROMPT)
    (tmp_path / "models.toml").write_text('fast = [{ provider = "openai", model = "m" }]\n')
    lines = set()
    for seed in ("1", "2", "3"):
        command = (sys.executable, "-m", "tests.workers.kit.test_hash_seed", str(tmp_path))
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        lines.add(done.stdout)
    (line,) = lines
    names, text, *_ = json.decode(line)
    assert len(set(names)) == len(WITH_SETS)
    assert text.splitlines()[0].startswith(
        "{'alpha', 'beta', 'gamma'} <alpha><beta><delta><gamma> Tagged(text='text', "
    )
    assert text.splitlines()[1] == "True 3 alpha,beta,delta,gamma"


async def test_a_step_without_sets_keeps_the_key_that_the_last_release_gave_it() -> None:
    before = [f"node:{blake2b(json.encode([[value], {}]), digest_size=6).hexdigest()}" for value in WITHOUT.values()]
    assert await keys(WITHOUT) == before


def test_only_what_holds_a_set_is_made_anew_and_no_user_code_runs() -> None:
    for value in WITHOUT.values():
        assert ordered(value) is value
    made = Pair({"a", "b"}, Plain(["c"]))
    assert json.encode(ordered(made)) == b'{"tags":["a","b"],"plain":{"words":["c","made"]}}'
    assert made.tags == {"a", "b"}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
