"""The command line, `callboard`: each command is imported only when it is called."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import click
from msgspec import Struct

from service.core.errors import CallboardError, SettingsError
from service.core.release import release


class Entry(Struct, frozen=True):
    """A command; `module` is the file that has it, under its name."""

    name: str
    module: str
    help: str


COMMANDS = (
    Entry("up", "up", "Start everything on this machine: database, Redis, API, worker."),
    Entry("demo", "demo", "Send a file of messages through it and show how they fared."),
    Entry("send", "send", "Send one event, and with --wait see what became of it."),
    Entry("show", "show", "Show one event: status, steps, result or error."),
    Entry("events", "events", "List events, by type, status, key, source or time."),
    Entry("tail", "show", "Follow one event until it ends, with replies as they are written."),
    Entry("dead", "operate", "List, show, replay and discard dead letters."),
    Entry("replay", "operate", "Run an ended event again."),
    Entry("cancel", "operate", "End an event that has not ended."),
    Entry("audit", "audit", "List who did what."),
    Entry("forget", "forget", "Remove every trace of a key, a subject or a source."),
    Entry("pipelines", "catalog", "List the pipelines, or draw one."),
    Entry("prompts", "catalog", "List, show and render prompts; count their calls."),
    Entry("new", "new", "Write a new event, prompt, node or pipeline to begin from."),
    Entry("keys", "keys", "Make, list and revoke API keys."),
    Entry("migrate", "programs", "Bring the database schema up to date."),
    Entry("api", "programs", "Run the HTTP service alone."),
    Entry("simulator", "programs", "Run the model simulator alone, with faults on request."),
    Entry("worker", "programs", "Run one worker alone."),
)

HELP = """Callboard takes events in, keeps them safe and runs your pipelines on them.

\b
First steps:
  callboard up
  callboard send ticket.opened --wait --data '{"ticket_id": "T-1",
    "subject": "Cannot log in", "body": "My password is rejected."}'
  callboard show EVENT_ID

\b
Where: CALLBOARD_URL (default http://127.0.0.1:8000), with CALLBOARD_API_KEY
where keys are in use.

Times: 2026-11-22T10:00:00Z, or how long ago: 90s, 15m, 1h, 7d, 2w.

\b
On a terminal, tables are as wide as it is, and NO_COLOR=1 means no colours;
elsewhere they are lines with tabs. --json gives what the API answers.

\b
Exit codes: 0 done; 1 the event is dead or the check failed; 2 wrong usage;
3 no service at CALLBOARD_URL, or no worker that could run what `send --wait`
waits for; 4 not found; 5 refused.
"""


class LazyGroup(click.Group):
    """Knows the commands by name, so that `--help` is quick and one that can't be loaded harms no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [entry.name for entry in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return next((_load(entry) for entry in COMMANDS if entry.name == cmd_name), None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.help) for entry in COMMANDS])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise click.UsageError(str(error)) from error
        except CallboardError as error:
            raise click.ClickException(str(error)) from error


def _load(entry: Entry) -> click.Command:
    try:
        command: click.Command = getattr(importlib.import_module(f"service.cli.{entry.module}"), entry.name)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"`callboard {entry.name}` needs {error.name}, which is not installed here. `make up` installs all of it."
        ) from error
    return command


def command_line(environ: Mapping[str, str]) -> LazyGroup:
    """All commands; with NO_COLOR set there (https://no-color.org), none prints colours."""
    context: dict[str, Any] = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}
    if environ.get("NO_COLOR"):
        context["color"] = False
    group = LazyGroup("callboard", help=HELP, no_args_is_help=True, context_settings=context)
    return click.version_option(release(), message="callboard %(version)s")(group)


def main() -> None:
    sys.exit(command_line(os.environ).main(prog_name="callboard"))
