"""The simulator's HTTP side: the providers' protocols, a pager, logs of what came, and the faults."""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.errors import CallboardError, SettingsError
from workers.simulator import anthropic, openai
from workers.simulator.behaviour import Behaviour
from workers.simulator.calls import LOG_MAX, Calls
from workers.simulator.dialect import BAD_REQUEST, Dialect, Said
from workers.simulator.faults import DOWN_S, Fault, Faults, parse, spoilt
from workers.simulator.limits import Gauge, Limiter, Refusal
from workers.simulator.replies import Chat, Texts
from workers.simulator.script import STREAM, Beat, Line, Script, play

BODY_MAX: Final = 32 * 1024 * 1024
HEADERS: Final = {"x-callboard-simulated": "1"}
FAULT_HEADER: Final = "x-callboard-fault"
AZURE: Final = "/openai/deployments/{model}"


class Page(Struct, frozen=True):
    """One call of the pager."""

    idempotency_key: str
    body: Any


class Simulator(Struct, frozen=True):
    behaviour: Behaviour
    random: Random
    faults: Faults
    limiter: Limiter
    calls: Calls
    pages: deque[Page]
    line: Line


class Unwired:
    """Beneath an app whose server is somebody else's: connections can't be cut there."""

    def cut(self, client: Any, *, reset: bool) -> None:
        raise ConnectionAbortedError("cut on purpose, by a fault")

    def down(self, for_s: float, client: Any) -> None:
        raise SettingsError("Only `running_simulator` can be down.")


def create_app(latency_s: float = 0.02, behaviour: Behaviour | None = None, line: Line | None = None) -> Starlette:
    """With `latency_s` alone, or with all of its `behaviour`."""
    simulator = _simulator(behaviour or Behaviour(latency_ms=latency_s * 1000), line or Unwired())
    chat, embeddings = openai.dialect_of(Chat), openai.dialect_of(Texts)
    dialects = {
        "/v1/chat/completions": chat,
        f"{AZURE}/chat/completions": chat,
        "/v1/embeddings": embeddings,
        f"{AZURE}/embeddings": embeddings,
        "/v1/messages": anthropic.dialect(),
    }
    return Starlette(
        routes=[
            *(
                Route(path, Endpoint(simulator, dialect), methods=["POST"], max_body_size=BODY_MAX)
                for path, dialect in dialects.items()
            ),
            Route("/calls", _shown("calls", lambda: list(simulator.calls.latest)), methods=["GET"]),
            Route("/pages", _shown("pages", lambda: list(simulator.pages)), methods=["GET"]),
            Route("/pages", _pager(simulator), methods=["POST"]),
            Route("/faults", _shown("faults", simulator.faults.shown), methods=["GET"]),
            Route("/faults", _armed(simulator), methods=["POST"]),
            Route("/faults", _cleared(simulator), methods=["DELETE"]),
        ]
    )


class Endpoint:
    """One place where a model is asked."""

    def __init__(self, simulator: Simulator, dialect: Dialect) -> None:
        self._simulator = simulator
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        simulator = self._simulator
        try:
            body = await request.body()
            asked = self._read(request, body)
            fault = self._fault(request, asked.model)
            said = self._dialect.speak(asked, fault.kind if fault else "", simulator.behaviour.seed)
        except ClientDisconnect:
            return
        except (msgspec.DecodeError, RecursionError, CallboardError) as misfit:
            await play(self._error(BAD_REQUEST, str(misfit)), request, send, simulator.line)
            return
        seen = simulator.calls.begin(request, body, asked.model, (said.tokens_in, said.tokens_out))
        gauge = simulator.limiter.gauge(asked.model)
        refusal = gauge.enter(said.tokens_in + said.tokens_out)
        script = self._limited(gauge, refusal) if refusal else self._script(said, fault, gauge)
        seen.status, seen.fault = script.status, fault.kind if fault and not refusal else ""
        ended: Any = "cut"
        try:
            ended = await play(script, request, send, simulator.line)
        finally:
            if not refusal:
                gauge.leave()
            simulator.calls.end(seen, ended)

    def _read(self, request: Request, body: bytes) -> Any:
        asked = msgspec.json.decode(body, type=self._dialect.asked)
        model = request.path_params.get("model") or asked.model
        if not model:
            raise msgspec.ValidationError("no model is named")
        return msgspec.structs.replace(asked, model=model)

    def _fault(self, request: Request, model: str) -> Fault | None:
        own = request.headers.get(FAULT_HEADER)
        return parse(own) if own else self._simulator.faults.pick(model)

    def _script(self, said: Said, fault: Fault | None, gauge: Gauge) -> Script:
        if fault and fault.kind == "status":
            again = {"retry-after": fault.retry_after} if fault.retry_after else {}
            return self._error(fault.status, f"HTTP {fault.status} on purpose (simulated).", again)
        if fault and fault.kind == "quota":
            status, body = self._dialect.no_credit
            return _plain(status, body, {})
        whole = self._whole(said, self._told(gauge))
        return spoilt(whole, fault.kind, fault.wait_s, self._dialect.error_event) if fault else whole

    def _whole(self, said: Said, headers: dict[str, str]) -> Script:
        behaviour, random = self._simulator.behaviour, self._simulator.random
        latency_s = behaviour.latency_s(random, streams=not said.body)
        if said.body:
            return _plain(200, said.body, headers, latency_s)
        first, *others = said.events
        beats = (Beat(latency_s, first), *(Beat(behaviour.token_ms / 1000, each) for each in others))
        return Script(200, HEADERS | headers, beats, STREAM)

    def _limited(self, gauge: Gauge, refusal: Refusal) -> Script:
        again = {"retry-after": str(math.ceil(refusal.after_s))}
        return self._error(429, f"The limit of {refusal.what} is reached (simulated).", self._told(gauge) | again)

    def _told(self, gauge: Gauge) -> dict[str, str]:
        return {name: fact for left in gauge.left() for name, fact in self._dialect.left(left).items()}

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> Script:
        return _plain(status, self._dialect.error(status, message), headers or {})


def _plain(status: int, body: object, headers: dict[str, str], wait_s: float = 0.0) -> Script:
    return Script(status, HEADERS | headers, (Beat(wait_s, msgspec.json.encode(body)),))


def _simulator(behaviour: Behaviour, line: Line) -> Simulator:
    random = Random(behaviour.seed)
    simulator = Simulator(
        behaviour=behaviour,
        random=random,
        faults=Faults(random),
        limiter=Limiter(behaviour.limits),
        calls=Calls(behaviour.log_file),
        pages=deque(maxlen=LOG_MAX),
        line=line,
    )
    for fault in behaviour.faults:
        _arm(simulator, fault, None)
    return simulator


def _arm(simulator: Simulator, fault: Fault, client: Any) -> None:
    if fault.kind == "down":
        simulator.line.down(fault.for_s or DOWN_S, client)
    else:
        simulator.faults.arm(fault)


def _armed(simulator: Simulator) -> Callable[[Request], Awaitable[Response]]:
    async def arm(request: Request) -> Response:
        try:
            fault = msgspec.json.decode(await request.body(), type=Fault)
            if fault.kind != "down":
                simulator.faults.arm(fault)
        except (msgspec.DecodeError, SettingsError) as misfit:
            return _json({"error": str(misfit)}, 400)
        down = fault.kind == "down"
        later = BackgroundTask(_arm, simulator, fault, request.client) if down else None
        return _json({"faults": simulator.faults.shown()}, 202, later)

    return arm


def _cleared(simulator: Simulator) -> Callable[[Request], Awaitable[Response]]:
    async def clear(_: Request) -> Response:
        simulator.faults.clear()
        return _json({"faults": []}, 200)

    return clear


def _pager(simulator: Simulator) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body())
        except msgspec.DecodeError as misfit:
            return _json({"error": str(misfit)}, 400)
        simulator.pages.append(Page(request.headers.get("idempotency-key", ""), body))
        return _json({}, 202)

    return page


def _shown(name: str, rows: Callable[[], list[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def show(_: Request) -> Response:
        return _json({name: rows()}, 200)

    return show


def _json(body: object, status: int, later: BackgroundTask | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, HEADERS, "application/json", later)
