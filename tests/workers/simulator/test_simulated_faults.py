"""Each fault, as the real SDKs report it; for whom, how often and for how long it is on."""

import asyncio
import json
import threading
from random import Random
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from service.core.errors import SettingsError
from tests.eventually import eventually
from tests.workers.simulator.sdks import HELLO, MODEL, Heard, asking
from workers.simulator import running_simulator
from workers.simulator.app import Unwired, create_app
from workers.simulator.behaviour import Behaviour
from workers.simulator.faults import ARMED_MAX, DOWN_S, Fault, Faults, parse

NAMES = ("openai", "anthropic")
SDKS: dict[str, Any] = {"openai": openai, "anthropic": anthropic}


STATUSES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "InternalServerError",
    529: "InternalServerError",
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", NAMES)
async def test_an_error_status(url: str, name: str, streams: bool) -> None:
    async with asking(name, url) as ask:
        for status, error in STATUSES.items():
            with pytest.raises(getattr(SDKS[name], error), match="on purpose") as caught:
                await ask(streams=streams, fault=str(status))
            assert caught.value.status_code == status


@pytest.mark.parametrize("name", NAMES)
async def test_retry_after_is_told_as_it_was_given(url: str, name: str) -> None:
    async with asking(name, url) as ask:
        for told in ("1", "3600", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"):
            with pytest.raises(SDKS[name].RateLimitError) as caught:
                await ask(fault=f"429,retry_after={told},times=1")
            assert caught.value.response.headers["retry-after"] == told


async def test_no_credit(url: str) -> None:
    async with asking("openai", url) as ask:
        with pytest.raises(openai.RateLimitError) as spent:
            await ask(fault="quota")
    assert spent.value.code == "insufficient_quota"
    async with asking("anthropic", url) as ask:
        with pytest.raises(anthropic.BadRequestError, match="credit balance"):
            await ask(fault="quota")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", NAMES)
async def test_what_the_model_does_wrong(url: str, name: str, streams: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"because": {"type": "string"}},
        "required": ["because"],
        "additionalProperties": False,
    }
    asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    if name == "anthropic":
        asked = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    async with asking(name, url) as ask:
        whole = await ask(streams=streams)
        refused = await ask(streams=streams, fault="refusal")
        short = await ask(streams=streams, fault="length")
        invalid = await ask(streams=streams, fault="invalid", **asked)
    assert refused.stop == {"openai": "stop", "anthropic": "refusal"}[name]
    assert "can't help" in (refused.text or "")
    assert short.stop == {"openai": "length", "anthropic": "max_tokens"}[name]
    assert (whole.text or "").startswith(short.text or "?")
    assert isinstance(json.loads(invalid.text or ""), list)


async def test_a_refusal_of_openai_is_none_of_its_words(url: str) -> None:
    async with openai.AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as sdk:
        headers = {"x-callboard-fault": "refusal"}
        completion = await sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=headers)
    message = completion.choices[0].message
    assert message.content is None
    assert message.refusal


BROKEN = (json.JSONDecodeError,)
LOST = {
    ("openai", False): (openai.APIConnectionError,),
    ("openai", True): (openai.APIConnectionError,),
    ("anthropic", False): (anthropic.APIConnectionError,),
    ("anthropic", True): (httpx2.RemoteProtocolError, httpx2.ReadError),
}
LATE = {
    ("openai", False): (openai.APITimeoutError,),
    ("openai", True): (openai.APITimeoutError,),
    ("anthropic", False): (anthropic.APITimeoutError,),
    ("anthropic", True): (httpx2.ReadTimeout,),
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", NAMES)
async def test_an_answer_that_breaks_off(url: str, name: str, streams: bool) -> None:
    async with asking(name, url) as ask:
        with pytest.raises(BROKEN):
            await ask(streams=streams, fault="malformed")
        with pytest.raises(LOST[name, streams]):
            await ask(streams=streams, fault="cut")
        with pytest.raises(SDKS[name].APIConnectionError) as caught:
            await ask(streams=streams, fault="reset")
        assert not isinstance(caught.value, SDKS[name].APITimeoutError)


@pytest.mark.parametrize("name", NAMES)
async def test_a_page_and_an_empty_object_are_no_error_to_the_sdk(url: str, name: str) -> None:
    async with asking(name, url) as ask:
        with pytest.raises(AttributeError, match="'str' object has no attribute"):
            await ask(fault="html")
        with pytest.raises(TypeError, match="'NoneType' object is not"):
            await ask(fault="empty")
        for kind in ("html", "empty"):
            heard = await ask(streams=True, fault=kind)
            assert (heard.text, heard.stop) == ("", None)


@pytest.mark.parametrize("name", NAMES)
async def test_a_stream_that_ends_early_but_in_order_is_no_error_to_the_sdk(url: str, name: str) -> None:
    async with asking(name, url) as ask:
        whole, half = await ask(streams=True), await ask(streams=True, fault="truncated")
        with pytest.raises(BROKEN):
            await ask(fault="truncated")
    assert half.stop is None
    assert half.text
    assert (whole.text or "").startswith(half.text)
    assert half.pieces in range(whole.pieces // 2 - 2, whole.pieces // 2 + 2)


async def test_an_event_that_says_error(url: str) -> None:
    async with asking("openai", url) as ask:
        with pytest.raises(openai.APIError, match="had an error") as told:
            await ask(streams=True, fault="error_event")
        assert not isinstance(told.value, openai.APIStatusError)
    async with asking("anthropic", url) as ask:
        with pytest.raises(anthropic.APIStatusError, match="Overloaded") as caught:
            await ask(streams=True, fault="error_event")
        assert caught.value.status_code == 200


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", NAMES)
async def test_silence_and_drops(url: str, http: httpx.AsyncClient, name: str, streams: bool) -> None:
    async with asking(name, url) as ask:
        with pytest.raises(SDKS[name].APITimeoutError):
            await ask(streams=streams, fault="hang", timeout=0.2)
        with pytest.raises(LATE[name, streams]):
            await ask(streams=streams, fault="stall", timeout=0.2)
        whole = await ask(streams=streams)
        assert await ask(streams=streams, fault="drip,wait_s=0.03", timeout=0.5) == whole
    calls = (await http.get("/calls")).json()["calls"]
    assert [call["fault"] for call in calls] == ["hang", "stall", "", "drip"]
    assert calls[-1]["ms"] > 500, "the SDK's time-out is for each read"


@pytest.mark.parametrize("name", NAMES)
async def test_down_and_up_again(url: str, http: httpx.AsyncClient, name: str) -> None:
    async with asking(name, url) as ask:
        await ask()
        assert (await http.post("/faults", json={"kind": "down", "for_s": 1.5})).status_code == 202
        errors = 0

        async def well() -> Heard | None:
            nonlocal errors
            try:
                return await ask(timeout=1)
            except SDKS[name].APIConnectionError:
                errors += 1
                return None

        async def away() -> bool:
            return await well() is None

        await eventually(away)
        with pytest.raises(httpx.ConnectError):
            await http.get("/calls")
        assert await eventually(well)
        assert errors > 3


async def test_its_servers_are_closed_by_the_thread_of_their_loop() -> None:
    """What is no coroutine would be run in another thread behind an answer, beside the loop that it changes."""
    threads: list[threading.Thread] = []

    class Watched(Unwired):
        def down(self, for_s: float, client: Any) -> None:
            threads.append(threading.current_thread())

    transport = httpx.ASGITransport(create_app(Behaviour(), Watched()))
    async with httpx.AsyncClient(transport=transport, base_url="http://simulator") as http:
        assert (await http.post("/faults", json={"kind": "down", "for_s": 1})).status_code == 202
    assert threads == [threading.current_thread()]


async def test_down_cuts_those_who_wait(url: str, http: httpx.AsyncClient) -> None:
    async with asking("openai", url) as ask:
        waiting = asyncio.ensure_future(ask(fault="hang"))

        async def there() -> bool:
            return bool((await http.get("/calls")).json()["calls"])

        await eventually(there)
        await http.post("/faults", json={"kind": "down", "for_s": 0.1})
        with pytest.raises(openai.APIConnectionError):
            await waiting


async def test_it_may_be_down_from_the_beginning() -> None:
    down = Behaviour(faults=(parse("down,for_s=60"),))
    async with running_simulator(behaviour=down) as address, httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"{address}/calls")


async def test_a_fault_is_on_for_a_model_and_a_number_of_calls(url: str, http: httpx.AsyncClient) -> None:
    for fault in ({"kind": "status", "status": 529, "model": "sick", "times": 2}, {"kind": "refusal", "model": "shy"}):
        assert (await http.post("/faults", json=fault)).status_code == 202
    async with asking("openai", url) as ask:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                await ask(model="sick")
        assert "can't help" not in str((await ask(model="sick")).text)
        assert "can't help" in str((await ask(model="shy")).text)
        assert [each["kind"] for each in (await http.get("/faults")).json()["faults"]] == ["refusal"]
        await http.delete("/faults")
        assert "can't help" not in str((await ask(model="shy")).text)


async def test_a_fault_is_on_for_a_time(url: str, http: httpx.AsyncClient) -> None:
    await http.post("/faults", json={"kind": "status", "for_s": 0.5})
    async with asking("openai", url) as ask:
        with pytest.raises(openai.InternalServerError):
            await ask()

        async def well() -> Heard:
            try:
                return await ask()
            except openai.InternalServerError as error:
                raise AssertionError from error

        assert await eventually(well)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_share_of_the_calls(share: float) -> None:
    faults = Faults(Random(7))
    faults.arm(Fault(kind="status", share=share))
    hit = sum(faults.pick("m") is not None for _ in range(2000))
    assert abs(hit / 2000 - share) < 0.03


def test_faults_are_bounded() -> None:
    faults = Faults(Random(0))
    for _ in range(ARMED_MAX):
        faults.arm(Fault(kind="hang"))
    with pytest.raises(SettingsError, match="DELETE /faults"):
        faults.arm(Fault(kind="hang"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("529", Fault(kind="status", status=529)),
        ("429,retry_after=Wed, 21 Oct 2015 07:28:00 GMT,times=3", None),
        ("cut,model=gpt-6-luna,share=0.3", Fault(kind="cut", model="gpt-6-luna", share=0.3)),
        ("down,for_s=60", Fault(kind="down", for_s=60)),
    ],
)
def test_a_fault_in_words(text: str, fault: Fault | None) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert parse(text) == (fault or Fault(kind="status", status=429, retry_after=date, times=3))
    assert DOWN_S > 0


NONSENSE = ["", "nonsense", "200", "cut,share=2", "cut,times=0", "cut,colour=red", "cut,times"]


async def test_what_is_no_fault_is_told(http: httpx.AsyncClient) -> None:
    for text in NONSENSE:
        with pytest.raises(SettingsError, match="is no fault"):
            parse(text)
        request = {"model": MODEL, "messages": HELLO}
        answer = await http.post("/v1/messages", json=request, headers={"x-callboard-fault": text or "?"})
        assert answer.status_code == 400
        assert "is no fault" in answer.json()["error"]["message"]
        assert (await http.post("/faults", json={"kind": text})).status_code == 400
