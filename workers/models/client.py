"""One call to a model: prompt → chain of providers → reply by type, each try behind its breaker and in the ledger."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

from msgspec.structs import replace

from prompts import Prompt, PromptError, Prompts, Rendered, Target, render
from service.core.errors import WiringError
from service.core.metrics import Meters
from service.core.settings import Settings
from workers.models.call import Caller, LlmRefused
from workers.models.call_log import Call, CallLog, Question, Try, encode, hashed
from workers.models.chains import check_chains, check_embeds, check_keys, no_key
from workers.models.circuit_breaker import Policy
from workers.models.embeddings import embed
from workers.models.errors import Fault
from workers.models.provider import Answer, Client, Message, Provider, Request, Texts
from workers.models.rate_limit_shares import Shared
from workers.models.rate_limits import open_limiters
from workers.models.streaming import StreamTimeouts
from workers.models.structured import InvalidReply, Shape

__all__ = ["Call", "CallLog", "Llm", "LlmRefused", "open_llm"]

T = TypeVar("T")
Sender = Callable[[Try, Client, Request], Awaitable[Answer]]
STREAM_TIMEOUTS: Final = StreamTimeouts()

EMBED: Final = "embed"


class Llm:
    """Made by `open_llm`: one per process."""

    def __init__(self, prompts: Prompts, caller: Caller) -> None:
        self._prompts = prompts
        self._caller = caller
        self._shapes: dict[type[Any], Shape[Any]] = {}

    async def ask(
        self,
        prompt: str,
        variables: Mapping[str, object],
        *,
        returns: type[T],
        call_log: CallLog,
        model: str | None = None,
        timeout_s: float = 60.0,
        labels: Mapping[str, str] | None = None,
    ) -> T:
        """Ask `prompt`, at the alias `model` if not at its own, for a `str` or a Struct; `timeout_s` bounds each call.

        `call_log` notes every call before it is made and before its reply is used; what it recalls is not asked again.
        The simulator alone reads `labels` (event, step). Raises Outage where nobody on the chain can answer now,
        LlmRefused where it is for the event itself to fail, WiringError where prompt, variables, alias or `returns`
        don't fit.
        """

        async def send(_: Try, client: Client, request: Request) -> Answer:
            return await client.complete(request, timeout_s)

        question, chain = self._question(prompt, variables, model, labels, self._shape(returns), timeout_s, call_log)
        return await self._put(question, chain, self._shape(returns), send)

    async def stream(
        self,
        prompt: str,
        variables: Mapping[str, object],
        *,
        returns: type[T],
        call_log: CallLog,
        model: str | None = None,
        timeouts: StreamTimeouts = STREAM_TIMEOUTS,
        labels: Mapping[str, str] | None = None,
    ) -> T:
        """As `ask`, with the pieces of the reply told to `call_log` as they come; `timeouts` bounds each call.

        A call that is made anew (another provider of the chain, a reply that did not fit) begins from nothing.
        """

        async def send(begun: Try, client: Client, request: Request) -> Answer:
            return await client.stream(request, timeouts, self._caller.listener(begun))

        shape = self._shape(returns)
        question, chain = self._question(prompt, variables, model, labels, shape, timeouts.total_s, call_log)
        return await self._put(replace(question, streams=True), chain, shape, send)

    def _question(
        self,
        prompt: str,
        variables: Mapping[str, object],
        model: str | None,
        labels: Mapping[str, str] | None,
        shape: Shape[T],
        timeout_s: float,
        call_log: CallLog,
    ) -> tuple[Question, list[Target]]:
        chosen, rendered, chain = self._choose(prompt, variables, model)
        request = Request(
            model=model or chosen.model,
            system=rendered.system,
            messages=(Message("user", rendered.user),),
            schema=shape.schema,
            max_tokens=chosen.max_tokens,
            temperature=chosen.head.temperature,
            headers=_headers(labels or {}) if self._caller.simulated else {},
        )
        return Question(chosen, request, timeout_s, call_log), chain

    async def _put(self, question: Question, chain: Sequence[Target], shape: Shape[T], send: Sender) -> T:
        call_log = question.call_log
        question_hash = hashed(encode(question))
        ordinal, stored_reply = call_log.recall(question_hash)
        if stored_reply is not None:
            with suppress(InvalidReply):
                reply = shape.decode(stored_reply)
                call_log.recalled(question.prompt)
                return reply
        question = replace(question, question_hash=question_hash, ordinal=ordinal)
        return await call_log.shield(
            self._caller.along(chain, lambda target: self._ask_at(target, question, shape, send))
        )

    async def embed(
        self,
        texts: Sequence[str],
        *,
        call_log: Callable[[], CallLog],
        model: str = "embed",
        timeout_s: float = 60.0,
        labels: Mapping[str, str] | None = None,
    ) -> list[list[float]]:
        """A vector for each text, in that order, from the alias `model`; `call_log` gives one for each call. Raises
        what `ask` raises; WiringError where a provider on the chain has no embeddings."""
        try:
            chain = self._known(model, self._prompts.chain(model))
        except PromptError as error:
            raise WiringError(str(error)) from error
        check_embeds(model, chain, self._caller)
        headers = _headers(labels or {}) if self._caller.simulated else {}
        return await embed(self._caller, chain, Texts(model, tuple(texts), headers), call_log, timeout_s)

    def breakers(self) -> dict[str, str]:
        """The state of each, by provider and model: closed, open or half_open."""
        return self._caller.breakers()

    def states(self) -> dict[str, str]:
        """Breakers and limits, by the name under which events wait for them."""
        return self._caller.states()

    def _choose(
        self, name: str, variables: Mapping[str, object], alias: str | None
    ) -> tuple[Prompt, Rendered, list[Target]]:
        try:
            prompt = self._prompts.get(name)
            chain = self._prompts.chain(alias or prompt.model)
            rendered = render(prompt, variables)
        except PromptError as error:
            raise WiringError(str(error)) from error
        return prompt, rendered, self._known(alias or prompt.model, chain)

    def _known(self, alias: str, chain: Sequence[Target]) -> list[Target]:
        with_key = [target for target in chain if self._caller.knows(target)]
        if not with_key:
            raise WiringError(no_key(alias, chain))
        return with_key

    def _shape(self, returns: type[T]) -> Shape[T]:
        if returns not in self._shapes:
            self._shapes[returns] = Shape(returns)
        return self._shapes[returns]

    async def _ask_at(self, target: Target, question: Question, shape: Shape[T], send: Sender) -> T:
        try:
            return await self._ask_once(self._caller.begin(question, target), shape, send)
        except InvalidReply as misfit:
            again = self._caller.begin(_again(question, misfit), target)
        try:
            return await self._ask_once(again, shape, send)
        except InvalidReply as misfit:
            raise LlmRefused(f"{again.where} gave no valid reply, asked twice: {misfit}.") from misfit

    async def _ask_once(self, begun: Try, shape: Shape[T], send: Sender) -> T:
        answer = await self._caller.make(begun, lambda client, request: send(begun, client, request))
        try:
            reply = shape.decode(_text(answer))
        except InvalidReply:
            await self._caller.close(begun, answer, valid=False)
            raise
        except Fault as fault:
            await self._caller.close(begun, answer, fault)
            raise LlmRefused(f"{begun.where}: {fault}") from fault
        await self._caller.close(begun, answer)
        return reply


@asynccontextmanager
async def open_llm(
    settings: Settings,
    prompts: Prompts,
    simulator_url: str | None,
    providers: Mapping[str, Provider],
    policy: Policy | None = None,
    shared: Shared | None = None,
    meters: Meters | None = None,
) -> AsyncIterator[Llm]:
    """The clients of every provider that has a key; with `simulator_url`, of all, talking to that address.

    `shared`: where all workers together keep the limits; without it this process keeps them alone.

    Raises WiringError where models.toml names a provider there is no file for, SettingsError where a prompt's alias
    names none that has a key.
    """
    check_chains(prompts, providers)
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        for name, provider in providers.items():
            if simulator_url or provider.has_keys(settings.providers):
                opening = provider.connect(settings.providers, simulator_url)
                clients[name] = await stack.enter_async_context(opening)
        check_keys(prompts, clients)
        targets = {target for chain in prompts.models.values() for target in chain if target.provider in clients}
        limiters = await stack.enter_async_context(open_limiters(targets, shared))
        caller = Caller(clients, limiters, policy or Policy(), simulated=simulator_url is not None, meters=meters)
        embedding = [target for target in prompts.models.get(EMBED, ()) if caller.knows(target)]
        check_embeds(EMBED, embedding, caller)
        yield Llm(prompts, caller)


def _headers(labels: Mapping[str, str]) -> dict[str, str]:
    return {f"x-callboard-{name.replace('_', '-')}": quote(value, safe="/#:[]") for name, value in labels.items()}


def _text(answer: Answer) -> str:
    if answer.stop == "length":
        cut = f"the reply was cut off after {answer.tokens_out} tokens: raise max_tokens in the prompt's head."
        raise Fault("length", cut)
    if answer.stop == "refused" or answer.text is None:
        raise Fault("refused", "the model refused to answer.")
    return answer.text


def _again(question: Question, misfit: InvalidReply) -> Question:
    demand = f"This does not fit what was asked for: {misfit}. Reply again, with nothing but JSON that fits the schema."
    replies = [Message("assistant", misfit.reply)] if misfit.reply.strip() else []  # Anthropic refuses an empty one
    request = cast(Request, question.request)
    return replace(question, request=replace(request, messages=(*request.messages, *replies, Message("user", demand))))
