"""Files of a user's own are none of the product's tests' business: those stay green, and tests/mine is run beside."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.processes import ROOT
from tests.shipped import MINE, SHIPPED, copied, of_users

EVENT: Final = '''"""Parcels."""

from schemas import Event

WEIGHT_MAX = 30_000


class ParcelWeighed(Event, tag="parcel.weighed", frozen=True):
    grams: int
'''
NODE: Final = """from msgspec import Struct
from yaml import safe_load

from schemas.events.parcels import ParcelWeighed
from workers.kit import Run, Settings


class Sorting(Struct, frozen=True):
    lane: str


class Lanes(Settings, frozen=True):
    lanes_url: str


async def sort(run: Run, parcel: ParcelWeighed, lanes: Lanes) -> Sorting:
    try:
        lane = safe_load("3")
    except Exception:
        lane = 0
    return await run.llm.ask("parcels/sort", returns=Sorting, parcel=parcel, statement=f"select a from b{lane}")
""" + "\n\n".join(f"\n# Line {number} of a long file." for number in range(100))
PIPELINE: Final = """from schemas.events.parcels import ParcelWeighed
from workers.kit import Pipeline
from workers.nodes.parcels import sort

parcels = Pipeline(on=ParcelWeighed, flow=[sort])
"""
PROVIDER: Final = '''"""Ours."""

from workers.models import openai
from workers.models.provider import SIMULATED_KEY

KEYS = ("OURS_API_KEY",)


def connect(values, simulator_url):
    key = values.get("OURS_API_KEY", SIMULATED_KEY)
    return openai.connect(key, simulator_url or "https://ours.example", name="ours")
'''
PROMPT: Final = """+++
model = "fast"
max_tokens = 100
variables = ["parcel", "statement"]
+++
Sort {{ parcel.grams }} by {{ statement }}.
"""
TEST: Final = """from schemas.events.parcels import ParcelWeighed


def test_ours():
    assert ParcelWeighed(1).grams == 1
"""
FILES: Final = {
    "schemas/events/parcels.py": EVENT,
    "workers/nodes/parcels.py": NODE,
    "workers/pipelines/parcels.py": PIPELINE,
    "workers/providers/ours.py": PROVIDER,
    "prompts/parcels/sort/v1.md": PROMPT,
    "prompts/tickets/classify/v2.md": PROMPT.replace("parcel.grams", "ticket.body").replace("parcel", "ticket"),
    "tests/mine/test_parcels.py": TEST,
}
# Those that looked at the files of users, and need no server.
LOOKED: Final = ("tests/test_shape.py", "tests/test_settings_page.py", "tests/prompts", "tests/schemas/test_catalog.py")


def test_with_a_file_of_each_kind_the_tests_of_the_product_stay_green(tmp_path: Path) -> None:
    tree = copied(ROOT, tmp_path / "tree")
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    assert of_users(tree) == sorted(name for name in FILES if not name.startswith(MINE))
    environ = {**os.environ, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    for arguments, said in ((LOOKED, "The tests of the product run without 6 files of yours"), ((MINE,), "1 passed")):
        command = (sys.executable, "-m", "pytest", "-q", *arguments)
        done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True, timeout=120)
        assert (done.returncode, said in done.stdout) == (0, True), done.stdout + done.stderr


def test_what_ships_is_there_and_nothing_else() -> None:
    """A new file of the product's own has to be named in tests/shipped.py."""
    assert not [name for name in SHIPPED if not (ROOT / name).exists()]
    assert of_users(ROOT) == []
