"""A version of a prompt that was paid for keeps its text: who comes with another one ends, before its first call."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from prompts import PromptError
from schemas import Event
from service.core.program import MISFIT
from service.core.servers import open_pool
from service.core.settings import Settings
from tests.board import TICKET, board_on
from tests.eventually import eventually
from tests.processes import run, started
from tests.programs import program_of
from tests.test_programs import ARQ, WORKER, environment
from tests.workers.engine.paying import open_shop, program, prompts_in, timeline_calls
from workers.engine.budget.prompt_versions import PromptVersions
from workers.engine.supervisor import open_worker
from workers.kit import Pipeline, Run

SENTENCE = "callboard worker: prompts/tickets/classify/v1.md is another text than calls were made with"
USED = "insert into prompts (name, version, hash) values ($1, $2, 'of another text')"


class Job(Event, tag="job", frozen=True):
    pass


async def say(run: Run, event: Job) -> str:
    return await run.llm.ask("say", returns=str, text="hello")


JOB = Pipeline(on=Job, flow=[say])


async def test_a_used_version_is_on_record_and_stops_the_boot_when_it_was_changed(
    settings: Settings, tmp_path: Path
) -> None:
    async with open_shop(settings, tmp_path, JOB, workers=2) as (board, _):
        for _ in range(4):
            await board.ended(await board.send("job", {}))
        told = prompts_in(tmp_path).get("say")
        rows = [(row["name"], row["version"], row["hash"]) for row in await board.sql("select * from prompts")]
        assert rows == [("say", 1, told.hash)]
        async with open_worker(program(board.settings, tmp_path, JOB)):
            pass
        changed = replace(program(board.settings, tmp_path, JOB, max_tokens=7), settings=board.settings)
        with pytest.raises(PromptError, match=r"prompts/say/v1\.md is another text .* such as prompts/say/v2\.md"):
            async with open_worker(changed):
                pass


async def test_who_comes_with_another_text_makes_no_call(settings: Settings, tmp_path: Path) -> None:
    """As where Postgres was away at its boot, or another worker was quicker."""
    async with open_shop(settings, tmp_path, JOB) as (board, provider):
        await board.sql(USED, "say", 1)
        event_id = await board.send("job", {})
        prompt_versions = board.workers[0].ledger.prompt_versions
        assert prompt_versions
        await eventually(lambda: _true(prompt_versions.changed.done()))
        assert "prompts/say/v1.md" in prompt_versions.changed.result()

        async def waits() -> bool:
            shown = await board.show(event_id)
            return bool(shown["status"] == "scheduled" and shown["attempts"] == 0)

        await eventually(waits)
        assert provider.asked == 0
        assert timeline_calls(await board.show(event_id)) == []


async def test_what_was_only_simulated_may_be_changed(settings: Settings, tmp_path: Path) -> None:
    simulated = replace(program_of(settings, job=JOB), prompts=prompts_in(tmp_path))
    async with board_on(settings, simulated) as board:
        assert (await board.ended(await board.send("job", {})))["status"] == "succeeded"
        assert await board.sql("select * from prompts") == []
        await board.sql(USED, "say", 1)
        async with open_worker(simulated):
            pass


async def test_a_boot_does_not_need_postgres(settings: Settings, tmp_path: Path) -> None:
    nowhere = replace(settings, database_url="postgresql://127.0.0.1:1/x")
    async with open_pool(nowhere, "test") as pool:
        await PromptVersions(pool).check(prompts_in(tmp_path))


@pytest.mark.parametrize("command", [WORKER, ARQ], ids=["workers", "arq"])
async def test_the_program_ends_with_a_sentence(settings: Settings, command: tuple[str, ...]) -> None:
    async with open_pool(settings, "test") as pool:
        await pool.execute(USED, "tickets/classify", 1)
    done = run(command, environment(settings, CALLBOARD_SIMULATE="off", OPENAI_API_KEY="k"))
    assert done.returncode == (MISFIT if command == WORKER else 1), done.stderr
    assert SENTENCE in done.stderr
    assert "Traceback" not in done.stderr


async def test_it_ends_later_too_where_it_could_not_know_at_the_boot(settings: Settings, tmp_path: Path) -> None:
    environ = environment(
        settings, CALLBOARD_SIMULATE="off", OPENAI_API_KEY="k", OPENAI_BASE_URL="http://127.0.0.1:1/v1"
    )
    with started(WORKER, tmp_path / "worker.log", environ) as worker:
        await worker.says("worker ready")
        async with board_on(settings, workers=0) as board:
            await board.sql(USED, "tickets/classify", 1)
            await board.send("ticket.opened", TICKET)
            assert await worker.ends() == MISFIT
    assert worker.output.rstrip().splitlines()[-1].startswith(SENTENCE)


async def _true(fact: bool) -> bool:
    return fact
