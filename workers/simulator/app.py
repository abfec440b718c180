"""The simulator's HTTP side: the providers' protocols, a pager, logs of what came, and the faults."""

import math
from collections import deque
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

from service.core.errors import CallboardError, SettingsError
from workers.simulator.behaviour import Behaviour
from workers.simulator.faults import DOWN_S, Fault, Faults, parse, spoilt
from workers.simulator.limits import Gauge, Limiter, Refusal
from workers.simulator.protocols import DIALECTS, Dialect, Said
from workers.simulator.script import LOG_MAX, STREAM, Beat, Calls, Line, Script, play

BODY_MAX: Final = 32 * 1024 * 1024
HEADERS: Final = {"x-callboard-simulated": "1"}
FAULT_HEADER: Final = "x-callboard-fault"


class Page(Struct, frozen=True):
    idempotency_key: str
    body: Any


class Unwired:
    """Beneath an app whose server is somebody else's: connections can't be cut there."""

    def cut(self, client: Any, *, reset: bool) -> None:
        raise ConnectionAbortedError("cut on purpose, by a fault")

    def down(self, for_s: float, client: Any) -> None:
        raise SettingsError("Only `running_simulator` can be down.")


def create_app(behaviour: Behaviour, line: Line | None = None) -> Starlette:
    simulator = Simulator(behaviour, line or Unwired())
    return Starlette(
        routes=[
            *(
                Route(path, Endpoint(simulator, dialect), methods=["POST"], max_body_size=BODY_MAX)
                for path, dialect in DIALECTS.items()
            ),
            Route("/calls", simulator.show_calls, methods=["GET"]),
            Route("/pages", simulator.show_pages, methods=["GET"]),
            Route("/pages", simulator.page, methods=["POST"]),
            Route("/faults", simulator.show_faults, methods=["GET"]),
            Route("/faults", simulator.arm, methods=["POST"]),
            Route("/faults", simulator.clear, methods=["DELETE"]),
        ]
    )


class Simulator:
    """What its endpoints share, and those that are for whoever watches it."""

    def __init__(self, behaviour: Behaviour, line: Line) -> None:
        self.behaviour: Final = behaviour
        self.random: Final = Random(behaviour.seed)
        self.faults: Final = Faults(self.random)
        self.limiter: Final = Limiter(behaviour.limits)
        self.calls: Final = Calls(behaviour.log_file)
        self.line: Final = line
        self._pages: Final[deque[Page]] = deque(maxlen=LOG_MAX)
        for fault in behaviour.faults:
            if fault.kind == "down":
                line.down(fault.for_s or DOWN_S, None)
            else:
                self.faults.arm(fault)

    async def show_calls(self, _: Request) -> Response:
        return _json({"calls": list(self.calls.latest)})

    async def show_pages(self, _: Request) -> Response:
        return _json({"pages": list(self._pages)})

    async def show_faults(self, _: Request) -> Response:
        return _json({"faults": self.faults.shown()})

    async def page(self, request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body())
        except msgspec.DecodeError as misfit:
            return _json({"error": str(misfit)}, 400)
        self._pages.append(Page(request.headers.get("idempotency-key", ""), body))
        return _json({}, 202)

    async def arm(self, request: Request) -> Response:
        later = None
        try:
            fault = msgspec.json.decode(await request.body(), type=Fault)
            if fault.kind == "down":
                later = BackgroundTask(self._down, fault.for_s or DOWN_S, request.client)
            else:
                self.faults.arm(fault)
        except (msgspec.DecodeError, SettingsError) as misfit:
            return _json({"error": str(misfit)}, 400)
        return _json({"faults": self.faults.shown()}, 202, later)

    async def _down(self, for_s: float, client: Any) -> None:
        """A coroutine, since what is none would be run in a thread, beside the loop whose servers it closes."""
        self.line.down(for_s, client)

    async def clear(self, _: Request) -> Response:
        self.faults.clear()
        return _json({"faults": []})


class Endpoint:
    def __init__(self, simulator: Simulator, dialect: Dialect) -> None:
        self._simulator = simulator
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        simulator = self._simulator
        try:
            body = await request.body()
            call = self._read(request, body)
            own = request.headers.get(FAULT_HEADER)
            fault = parse(own) if own else simulator.faults.pick(call.model)
            reply = self._dialect.speak(call, fault.kind if fault else "", simulator.behaviour.seed)
        except ClientDisconnect:
            return
        except (msgspec.DecodeError, RecursionError, CallboardError) as misfit:
            await play(self._error(400, str(misfit)), request, send, simulator.line)
            return
        seen = simulator.calls.begin(request, body, call.model, (reply.tokens_in, reply.tokens_out))
        gauge = simulator.limiter.gauge(call.model)
        refusal = gauge.enter(reply.tokens_in + reply.tokens_out)
        script = self._limited(gauge, refusal) if refusal else self._script(reply, fault, gauge)
        seen.status, seen.fault = script.status, fault.kind if fault and not refusal else ""
        ended: Any = "cut"
        try:
            ended = await play(script, request, send, simulator.line)
        finally:
            if not refusal:
                gauge.leave()
            simulator.calls.end(seen, ended)

    def _read(self, request: Request, body: bytes) -> Any:
        call = msgspec.json.decode(body, type=self._dialect.request_type)
        model = request.path_params.get("model") or call.model
        if not model:
            raise msgspec.ValidationError("no model is named")
        return msgspec.structs.replace(call, model=model)

    def _script(self, reply: Said, fault: Fault | None, gauge: Gauge) -> Script:
        if fault and fault.kind == "status":
            again = {"retry-after": fault.retry_after} if fault.retry_after else {}
            return self._error(fault.status, f"HTTP {fault.status} on purpose (simulated).", again)
        if fault and fault.kind == "quota":
            return _plain(*self._dialect.no_credit)
        script = self._success(reply, self._limits(gauge))
        return spoilt(script, fault.kind, fault.wait_s, self._dialect.error_event) if fault else script

    def _success(self, reply: Said, headers: dict[str, str]) -> Script:
        behaviour, random = self._simulator.behaviour, self._simulator.random
        latency_s = behaviour.latency_s(random, streams=not reply.body)
        if reply.body:
            return _plain(200, reply.body, headers, latency_s)
        first, *others = reply.events
        beats = (Beat(latency_s, first), *(Beat(behaviour.token_ms / 1000, text) for text in others))
        return Script(200, HEADERS | headers, beats, STREAM)

    def _limited(self, gauge: Gauge, refusal: Refusal) -> Script:
        again = {"retry-after": str(math.ceil(refusal.after_s))}
        return self._error(429, f"The limit of {refusal.what} is reached (simulated).", self._limits(gauge) | again)

    def _limits(self, gauge: Gauge) -> dict[str, str]:
        return {name: fact for left in gauge.left() for name, fact in self._dialect.left(left).items()}

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> Script:
        return _plain(status, self._dialect.error(status, message), headers)


def _plain(status: int, body: object, headers: dict[str, str] | None = None, wait_s: float = 0.0) -> Script:
    return Script(status, HEADERS | (headers or {}), (Beat(wait_s, msgspec.json.encode(body)),))


def _json(body: object, status: int = 200, later: BackgroundTask | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, HEADERS, "application/json", later)
