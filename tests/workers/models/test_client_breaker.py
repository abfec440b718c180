"""When a model is not asked any more: each SDK over real HTTP, its breaker, and whose failure it was."""

import asyncio
from itertools import islice

import pytest
from starlette.requests import Request
from starlette.responses import Response

from prompts import Prompts
from service.core.errors import Outage
from tests.workers.models.asking import EAGER, MODELS, PROVIDERS, Ledger, always, ask, opened, provider, said
from workers.simulator import running_simulator
from workers.simulator.behaviour import Behaviour
from workers.simulator.faults import Fault


@pytest.mark.parametrize("name", PROVIDERS)
async def test_the_deadline_is_total_and_counts_at_the_breaker(prompts: Prompts, ledger: Ledger, name: str) -> None:
    over = asyncio.Event()

    async def hang(_: Request) -> Response:
        await over.wait()
        return Response()

    async with provider(hang) as url, opened(prompts, url, EAGER) as llm:
        asking = [ask(llm, ledger, model=name, timeout_s=0.2) for _ in range(5)]
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        state = llm.breakers()[f"{name}/{MODELS[name]}"]
        over.set()
    assert all(isinstance(outcome, Outage) for outcome in outcomes)
    assert ledger.outcomes == ["timeout"] * 5
    assert [(call.outcome, call.cost_usd) for call in ledger.calls] == [
        ("unknown", call.cost_usd) for call in ledger.opened
    ]
    assert state == "open"


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_dead_provider_opens_the_breaker(prompts: Prompts, ledger: Ledger, name: str) -> None:
    async with provider(always()) as url:
        pass
    async with opened(prompts, url, EAGER) as llm:
        for _ in range(5):
            with pytest.raises(Outage, match="can't be reached"):
                await ask(llm, ledger, model=name)
        with pytest.raises(Outage, match="circuit breaker"):
            await ask(llm, ledger, model=name)
    assert ledger.outcomes == ["connection"] * 5, "a call that was not made is not in the ledger"
    assert {call.cost_usd for call in ledger.calls} == {0.0}, "what was not sent costs nothing"


async def test_half_open_probes_once_with_fifty_waiting(prompts: Prompts, ledger: Ledger) -> None:
    sick, calls, release = True, 0, asyncio.Event()

    async def handle(_: Request) -> Response:
        nonlocal calls
        calls += 1
        if sick:
            return Response("{}", 500)
        await release.wait()
        return Response(said("well"), media_type="application/json")

    async with provider(handle) as url, opened(prompts, url, EAGER) as llm:
        await asyncio.gather(*[ask(llm, ledger, model="openai") for _ in range(5)], return_exceptions=True)
        breaker = f"openai/{MODELS['openai']}"
        async with asyncio.timeout(5):
            while llm.breakers()[breaker] == "open":
                await asyncio.sleep(0.01)
        sick, calls = False, 0
        asking = [asyncio.create_task(ask(llm, Ledger(), model="openai")) for _ in range(50)]  # fifty runs
        async with asyncio.timeout(5):
            for first in islice(asyncio.as_completed(asking), 49):
                with pytest.raises(Outage, match="circuit breaker"):
                    await first
            release.set()
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert (calls, outcomes.count("well")) == (1, 1)
        assert llm.breakers()[breaker] == "closed"


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(("share", "opens"), [(0.30, True), (0.05, False)])
async def test_the_breaker_over_real_http(
    prompts: Prompts, ledger: Ledger, name: str, share: float, opens: bool
) -> None:
    """Thirty errors in a hundred open it, five don't: each SDK, the policy that is shipped, a simulator with a seed."""
    fault = Fault(kind="status", status=529, share=share)
    async with (
        running_simulator(behaviour=Behaviour(seed=3, latency_ms=1, faults=(fault,))) as url,
        opened(prompts, url) as llm,
    ):
        states = set[str]()
        for _ in range(30):
            await asyncio.gather(*(ask(llm, ledger, model=name) for _ in range(10)), return_exceptions=True)
            states.add(llm.breakers()[f"{name}/{MODELS[name]}"])
    assert ("open" in states) == opens
    assert len(ledger.calls) < 150 if opens else len(ledger.calls) == 300


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, "{}", "refuses our key"),
        (403, "{}", "refuses our key"),
        (429, '{"error": {"code": "insufficient_quota", "type": "billing_error", "message": "x"}}', "no credit left"),
    ],
)
async def test_a_key_or_an_account_that_is_no_good_opens_it_at_once(
    prompts: Prompts, ledger: Ledger, name: str, status: int, body: str, reason: str
) -> None:
    async with provider(always(body, status)) as url, opened(prompts, url) as llm:
        for _ in range(3):
            with pytest.raises(Outage, match=reason) as caught:
                await ask(llm, ledger, model=name)
            assert caught.value.max_uncharged is None
            assert caught.value.blocked_by == [f"{name}/{MODELS[name]}"]
    assert ledger.outcomes == ["setup"], "one call has told it all"


async def test_whose_failure_it_was(prompts: Prompts, ledger: Ledger) -> None:
    """With the breaker closed: perhaps the event's own, but only where the model answers others."""
    answers = iter([500, 200, 500])

    async def handle(_: Request) -> Response:
        return Response(said("well"), next(answers), media_type="application/json")

    async with provider(handle) as url, opened(prompts, url) as llm:
        with pytest.raises(Outage) as alone:
            await ask(llm, ledger, model="openai")
        await ask(llm, ledger, model="openai")
        with pytest.raises(Outage) as beside:
            await ask(llm, ledger, model="openai")
    assert (alone.value.max_uncharged, beside.value.max_uncharged) == (150, 5)
