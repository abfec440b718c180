"""A model provider that costs nothing: OpenAI's and Anthropic's protocols over real HTTP, deterministic replies."""

from workers.simulator.serve import running_simulator

__all__ = ["running_simulator"]
