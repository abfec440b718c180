"""One call to a model: prompt → chain of providers → reply by type, each try behind its breaker and in the ledger."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import quote

from msgspec.structs import replace

from prompts import Prompt, PromptError, Prompts, Rendered, Target, render
from service.errors import CallboardError, Outage, SettingsError, WiringError
from service.settings import Settings
from workers.clients.breaker import Breaker, BreakerOpen, Policy, Verdict
from workers.clients.faults import SICK, WAIT_CAP_S, Fault
from workers.clients.ledger import Book, Call, Question, Try, answered, begin, encode, failed, hashed, lost
from workers.clients.prices import Prices
from workers.clients.provider import Answer, Client, Connect, Message, Request
from workers.clients.structured import InvalidReply, Shape

__all__ = ["Book", "Call", "Llm", "LlmRefused", "open_llm"]

T = TypeVar("T")


class LlmRefused(CallboardError):
    """The model or its provider will not do what was asked: the event's own failure."""


class Llm:
    """Made by `open_llm`: one per process."""

    def __init__(self, prompts: Prompts, clients: Mapping[str, Client], policy: Policy, *, simulated: bool) -> None:
        self._prompts = prompts
        self._clients = clients
        self._simulated = simulated
        self._shapes: dict[type[Any], Shape[Any]] = {}
        targets = {target for chain in prompts.models.values() for target in chain if target.provider in clients}
        self._prices = Prices(targets)
        for target in targets:
            # Now, since the first look into the price list takes half a second.
            self._prices.cost_usd(target.provider, target.model, 0, 0)
        self._breakers = {target: Breaker(f"{target.provider} {target.model}", _verdict, policy) for target in targets}

    async def ask(
        self,
        prompt: str,
        variables: Mapping[str, object],
        *,
        returns: type[T],
        book: Book,
        model: str | None = None,
        timeout_s: float = 60.0,
        labels: Mapping[str, str] | None = None,
    ) -> T:
        """Ask `prompt`, at the alias `model` if not at its own, for a `str` or a Struct; `timeout_s` bounds each call.

        `book` is told of every call before it is made and before its reply is used; what it recalls is not asked again.
        `labels` (event, step) are told to the simulator only. Raises Outage where nobody on the chain can answer now,
        LlmRefused where it is for the event itself to fail, and CallboardError where prompt and variables don't fit.
        """
        chosen, rendered, chain = self._choose(prompt, variables, model)
        shape = self._shape(returns)
        request = Request(
            model=model or chosen.model,
            system=rendered.system,
            messages=(Message("user", rendered.user),),
            schema=shape.schema,
            max_tokens=chosen.max_tokens,
            temperature=chosen.head.temperature,
            headers=_headers(labels or {}) if self._simulated else {},
        )
        question = Question(chosen, request, timeout_s, book)
        asked = hashed(encode(question))
        ordinal, told = book.recall(asked)
        if told is not None:
            with suppress(InvalidReply):
                reply = shape.decode(told)
                book.recalled(chosen)
                return reply
        return await book.whole(self._ask_along(chain, replace(question, asked=asked, ordinal=ordinal), shape))

    def breakers(self) -> dict[str, str]:
        """The state of each, by provider and model: closed, open or half_open."""
        return {f"{target.provider}/{target.model}": breaker.state for target, breaker in self._breakers.items()}

    def _choose(
        self, name: str, variables: Mapping[str, object], alias: str | None
    ) -> tuple[Prompt, Rendered, list[Target]]:
        try:
            prompt = self._prompts.get(name)
            chain = self._prompts.chain(alias or prompt.model)
            rendered = render(prompt, variables)
        except PromptError as error:
            raise CallboardError(str(error)) from error
        with_key = [target for target in chain if target in self._breakers]
        if not with_key:
            raise SettingsError(_no_key(alias or prompt.model, chain))
        return prompt, rendered, with_key

    def _shape(self, returns: type[T]) -> Shape[T]:
        if returns not in self._shapes:
            self._shapes[returns] = Shape(returns)
        return self._shapes[returns]

    async def _ask_along(self, chain: Sequence[Target], question: Question, shape: Shape[T]) -> T:
        outages: list[Outage] = []
        for target in chain:
            try:
                return await self._ask_at(target, question, shape)
            except Outage as outage:
                outages.append(outage)
        causes = dict.fromkeys(outage.cause for outage in outages)
        raise Outage(" ".join(causes), min(outage.after_s for outage in outages)) from outages[-1]

    async def _ask_at(self, target: Target, question: Question, shape: Shape[T]) -> T:
        try:
            return await self._ask_once(self._begin(question, target), shape)
        except InvalidReply as misfit:
            again = self._begin(_again(question, misfit), target)
        try:
            return await self._ask_once(again, shape)
        except InvalidReply as misfit:
            raise LlmRefused(f"{again.where} gave no valid reply, asked twice: {misfit}.") from misfit

    def _begin(self, question: Question, target: Target) -> Try:
        return begin(question, target, self._prices, simulated=self._simulated)

    async def _ask_once(self, begun: Try, shape: Shape[T]) -> T:
        answer, book = await self._answer(begun), begun.question.book
        try:
            reply = shape.decode(_whole(answer))
        except InvalidReply:
            await book.close(answered(begun, "invalid", answer, self._prices))
            raise
        except Fault as fault:
            await book.close(answered(begun, fault.outcome, answer, self._prices))
            raise LlmRefused(f"{begun.where}: {fault}") from fault
        await book.close(answered(begun, "ok", answer, self._prices))
        return reply

    async def _answer(self, begun: Try) -> Answer:
        try:
            return await self._breakers[begun.target].call(lambda: self._booked(begun))
        except BreakerOpen as error:
            raise Outage(str(error), min(error.after_s, WAIT_CAP_S)) from error
        except Fault as fault:
            if fault.away:
                raise fault.outage() from fault
            raise LlmRefused(f"{begun.where}: {fault}") from fault

    async def _booked(self, begun: Try) -> Answer:
        """A call that brought no answer is closed here, whatever ended it."""
        book = begun.question.book
        await book.open(begun.call)
        ended: Call | None = lost(begun, "cancelled")
        try:
            answer = await self._complete(begun)
            ended = None
        except Fault as fault:
            ended = failed(begun, fault)
            raise
        finally:
            if ended is not None:
                await book.close(ended)
        return answer

    async def _complete(self, begun: Try) -> Answer:
        target, timeout_s = begun.target, begun.question.timeout_s
        request = replace(begun.question.request, model=target.model)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._clients[target.provider].complete(request, timeout_s)
        except TimeoutError as error:
            message = f"{target.provider} {target.model} gave no whole reply in {timeout_s:g} s."
            raise Fault("timeout", message) from error


@asynccontextmanager
async def open_llm(
    settings: Settings,
    prompts: Prompts,
    simulator_url: str | None,
    providers: Mapping[str, Connect],
    policy: Policy | None = None,
) -> AsyncIterator[Llm]:
    """The clients of every provider that has a key; with `simulator_url`, of all, talking to that address.

    Raises WiringError where models.toml names a provider there is no file for, SettingsError where a prompt's alias
    names none that has a key.
    """
    _check_providers(prompts, providers)
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        for name, connect in providers.items():
            opening = connect(settings, simulator_url)
            if opening is not None:
                clients[name] = await stack.enter_async_context(opening)
        _check_keys(prompts, clients)
        yield Llm(prompts, clients, policy or Policy(), simulated=simulator_url is not None)


def _check_providers(prompts: Prompts, providers: Mapping[str, Connect]) -> None:
    for alias, chain in prompts.models.items():
        for name in {target.provider for target in chain} - providers.keys():
            raise WiringError(f'models.toml: {alias} names the provider "{name}": write workers/providers/{name}.py.')


def _check_keys(prompts: Prompts, clients: Mapping[str, Client]) -> None:
    for alias in sorted({prompt.model for versions in prompts.versions.values() for prompt in versions.values()}):
        chain = prompts.chain(alias)
        if not any(target.provider in clients for target in chain):
            raise SettingsError(_no_key(alias, chain))


def _no_key(alias: str, chain: Sequence[Target]) -> str:
    names = " or ".join(f"{target.provider.upper()}_API_KEY" for target in chain)
    return f'No provider of the model alias "{alias}" has a key: set {names}, or CALLBOARD_SIMULATE=on to try without.'


def _verdict(error: Exception) -> Verdict:
    if not isinstance(error, Fault):
        return "neutral"
    if error.outcome in SICK:
        return "failure"
    return "success" if error.outcome == "refused" else "neutral"


def _headers(labels: Mapping[str, str]) -> dict[str, str]:
    return {f"x-callboard-{name.replace('_', '-')}": quote(value, safe="/#:[]") for name, value in labels.items()}


def _whole(answer: Answer) -> str:
    if answer.stop == "length":
        cut = f"the reply was cut off after {answer.tokens_out} tokens: raise max_tokens in the prompt's head."
        raise Fault("length", cut)
    if answer.stop == "refused" or answer.text is None:
        raise Fault("refused", "the model refused to answer.")
    return answer.text


def _again(question: Question, misfit: InvalidReply) -> Question:
    demand = f"This does not fit what was asked for: {misfit}. Reply again, with nothing but JSON that fits the schema."
    more = (Message("assistant", misfit.reply), Message("user", demand))
    return replace(question, request=replace(question.request, messages=question.request.messages + more))
