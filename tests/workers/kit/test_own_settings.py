"""Settings of a user's own: read when the worker starts, put in by their type, in no log."""

import sys
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from msgspec.structs import replace

from schemas import Event
from service.core.errors import WiringError
from service.core.settings import Settings as Ours
from service.core.settings import secrets_of
from tests.programs import program_of
from tests.workers.kit.runs import open_run, with_deps
from workers.bootstrap import secrets
from workers.compiler.binding import bind
from workers.compiler.plan import execute
from workers.compiler.wiring import compiled
from workers.kit import Pipeline, Run, Settings, each, pipeline
from workers.kit.settings import Own, addresses, read, simulated, texts
from workers.kit.signature import check_body
from workers.nodes.pager import Pager

CRM = '''"""Of a CRM."""

from workers.kit import Settings


class Crm(Settings, frozen=True):
    """Where customers are."""

    crm_url: str
    crm_token: str
    crm_retries: int = 3
'''


class Asked(Event, tag="asked", frozen=True):
    text: str = "x"


class Crm(Settings, frozen=True):
    crm_url: str = ""
    crm_token: str = ""


OWN: Own = {Crm: Crm(crm_url="http://crm.test", crm_token="t-123456")}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "of_users").mkdir()
    (tmp_path / "of_users" / "__init__.py").touch()
    (tmp_path / "of_users" / "crm.py").write_text(CRM)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("of_users", "of_users.crm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module("of_users")


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    async with open_run() as opened:
        yield with_deps(opened, clients=replace(opened._deps.clients, own_settings=OWN))


def test_each_field_is_a_variable_a_file_or_a_file_in_the_folder_of_secrets(
    package: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "crm_token").write_text("from-the-folder\n")
    (tmp_path / "url").write_text("https://crm.example/\n")
    environ = {
        "CRM_URL_FILE": str(tmp_path / "url"),
        "CALLBOARD_SECRETS_DIR": str(tmp_path),
        "CRM_RETRIES": " 5 ",
    }
    ((kind, value),) = read([package], environ).items()
    assert value == kind(crm_url="https://crm.example/", crm_token="from-the-folder", crm_retries=5)
    assert f"{value}" == "Crm(…)"


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {"CRM_URL": "http://x"},
            r"^CRM_TOKEN is not set, and Crm\.crm_token \(.*/of_users/crm\.py:6\) has no default\.",
        ),
        ({"CRM_RETRIES": "hush"}, r"CRM_RETRIES does not fit Crm\.crm_retries \(.*crm\.py:6\): Expected `int`"),
        ({"CRM_URL": "hush"}, r"CRM_URL is no address: it has to be http:// or https:// and a host\."),
        ({"CRM_URL": "http://u:hush@"}, r"CRM_URL is no address"),
        ({"CRM_URL_FILE": "/nowhere"}, r"CRM_URL_FILE=/nowhere can't be read"),
    ],
)
def test_what_is_wrong_stops_the_start_with_a_sentence(
    package: ModuleType, environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(WiringError, match=sentence) as error:
        read([package], environ)
    assert "hush" not in str(error.value)


def test_another_kind_of_address_is_taken_as_it_is(package: ModuleType) -> None:
    own = read([package], {"CRM_URL": "postgresql://u:pass-word@h/db", "CRM_TOKEN": "t-123456"})
    assert addresses(own) == []
    assert {"pass-word", "t-123456"} <= secrets_of(texts(own))


def test_no_log_shows_them() -> None:
    assert "t-123456" in secrets(replace(program_of(Ours(simulate="on")), own_settings=OWN))


def test_a_name_of_callboards_is_refused(package: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "of_users" / "bad.py").write_text(CRM.replace("crm_url", "callboard_port").replace("Crm", "Bad"))
    with pytest.raises(WiringError, match=r"Bad\.callboard_port .* a name of Callboard's own\. Rename the field\."):
        read([package], {"CRM_URL": "http://x", "CRM_TOKEN": "x"})


async def test_they_are_put_in_wherever_they_are_taken(run: Run) -> None:
    """In a flow, for each item, in a step of the free form, in its body, in a node's own steps."""

    async def words(run: Run, crm: Crm, event: Asked) -> list[str]:
        return [crm.crm_url, event.text]

    async def word(word: str, crm: Crm) -> str:
        return f"{word} {crm.crm_token}"

    async def outer(crm: Crm, text: str) -> str:
        return f"{crm.crm_url} {text}"

    @pipeline(on=Asked)
    async def free(run: Run, event: Asked, crm: Crm) -> list[str]:
        return [crm.crm_token, *await run.step(words, event), await run.step(outer, "text")]

    with_each = bind([words, each(word)], Asked)
    assert await execute(with_each, run, Asked()) == ["http://crm.test t-123456", "x t-123456"]
    words_and_outer = ["http://crm.test", "y", "http://crm.test text"]
    assert await execute(compiled(free), run, Asked("y")) == ["t-123456", *words_and_outer]
    assert not [record for record in run._deps.facts.unstored if b"t-123456" in record.entry and record.step == "words"]


async def test_what_was_not_read_is_a_mistake_of_the_wiring(run: Run) -> None:
    class Elsewhere(Settings, frozen=True):
        pass

    async def takes(elsewhere: Elsewhere) -> str:
        return "never"

    with pytest.raises(WiringError, match=r"Elsewhere was not read when the worker started\. Declare it beside your"):
        await execute(bind([takes], Asked), run, Asked())


def test_an_address_that_is_not_set_is_the_simulators_where_answers_are_simulated() -> None:
    def of(own: Own) -> str:
        (pager,) = (value for value in own.values() if isinstance(value, Pager))
        return pager.page_url

    assert of(simulated({Pager: Pager(), **OWN}, "http://127.0.0.1:1")) == "http://127.0.0.1:1/pages"
    assert of(simulated({Pager: Pager(page_url="http://own")}, "http://127.0.0.1:1")) == "http://own"
    assert simulated(OWN, "http://127.0.0.1:1") == OWN


def test_a_free_form_still_takes_no_more_than_run_and_event() -> None:
    async def body(run: Run, event: Asked, more: str) -> None:
        raise AssertionError

    with pytest.raises(WiringError, match="can't be called with the run and the event"):
        check_body("free", body, Asked)
    assert Pipeline(on=Asked).body is None
