"""What a call costs: from models.toml, or from the price list that comes with genai-prices; nothing is fetched."""

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Final

from genai_prices import Usage, calc_price
from msgspec import Struct

from prompts import Target

SAMPLE: Final = 1000
LINEAR_TOKENS_MAX: Final = 32_000


class Rates(Struct, frozen=True):
    fixed: float
    token_in: float
    token_out: float


class Prices:
    """Short calls at remembered rates, as asking the list takes 0.3 ms; long ones, which may have tiers, at its own."""

    def __init__(self, targets: Iterable[Target] = ()) -> None:
        """`targets`: those that say their own price count at that."""
        self._own: Final = {
            (target.provider, target.model): Rates(
                0.0, target.usd_per_million.input / 1e6, target.usd_per_million.output / 1e6
            )
            for target in targets
            if target.usd_per_million is not None
        }
        self._day: date | None = None
        self._rates: dict[tuple[str, str], Rates | None] = {}

    def cost_usd(self, provider: str, model: str, tokens_in: int, tokens_out: int) -> float | None:
        """None where the model's price is unknown."""
        rates = self._own.get((provider, model))
        if rates is None and tokens_in > LINEAR_TOKENS_MAX:
            return _listed(provider, model, tokens_in, tokens_out)
        rates = rates or self._rates_today(provider, model)
        if rates is None:
            return None
        return rates.fixed + tokens_in * rates.token_in + tokens_out * rates.token_out

    def _rates_today(self, provider: str, model: str) -> Rates | None:
        today = datetime.now(UTC).date()
        if today != self._day:
            self._day, self._rates = today, {}
        if (provider, model) not in self._rates:
            self._rates[provider, model] = _rates(provider, model)
        return self._rates[provider, model]


def _rates(provider: str, model: str) -> Rates | None:
    fixed = _listed(provider, model, 0, 0)
    token_in = _listed(provider, model, SAMPLE, 0)
    token_out = _listed(provider, model, 0, SAMPLE)
    if fixed is None or token_in is None or token_out is None:
        return None
    return Rates(fixed, (token_in - fixed) / SAMPLE, (token_out - fixed) / SAMPLE)


def _listed(provider: str, model: str, tokens_in: int, tokens_out: int) -> float | None:
    try:
        price = calc_price(Usage(input_tokens=tokens_in, output_tokens=tokens_out), model, provider_id=provider)
    except LookupError:
        return None
    return float(price.total_price)
