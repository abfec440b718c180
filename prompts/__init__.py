"""What models are sent: versioned prompts, `prompts/<name>/v<N>.md`, and the aliases of models in `models.toml`.

A prompt is a file like this:

+++
model = "fast"                # an alias of models.toml
max_tokens = 2000             # temperature = 0.2 may follow
variables = ["ticket"]        # exactly the names the body uses
+++
--- system ---
optional: who the model is
--- user ---
sandboxed Jinja2: {{ ticket.body }}
"""

from prompts.loader import load
from prompts.prompt import Head, Limits, Price, Prompt, PromptError, Prompts, Rendered, Target
from prompts.render import check_names, render

__all__ = [
    "Head",
    "Limits",
    "Price",
    "Prompt",
    "PromptError",
    "Prompts",
    "Rendered",
    "Target",
    "check_names",
    "load",
    "render",
]
