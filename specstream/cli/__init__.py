"""The command line: one file per command group, imported on demand. Errors are one line."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from contextlib import suppress

import click

import specstream
from specstream.cli.output import one_line

# Each is defined as NAME_command in the module NAME.
COMMANDS = ("generate", "bench", "cost", "invariance", "evaluate", "answers", "train", "adapters", "runs", "models")


class LazyGroup(click.Group):
    """A group whose commands are imported by name, so that no command waits for the imports of another."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return find_command(cmd_name) if cmd_name in COMMANDS else None


def find_command(name: str) -> click.Command:
    """The command with one of the names in COMMANDS."""
    command = getattr(importlib.import_module(f"specstream.cli.{name}"), f"{name}_command")
    assert isinstance(command, click.Command)
    return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(specstream.__version__, message="%(version)s")
def cli() -> None:
    """Speculative Streaming: one language model drafts for itself and verifies its own drafts."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit, without a traceback for anything that a user can cause."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # None if it is closed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that an encoding such as latin-1 lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:] if args is None else args)
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        code = 0
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would report it again at exit
        _close_output()
    if code:
        sys.exit(code)


def _run(args: list[str]) -> int:
    """Run a command, reporting errors in one line. Returns the exit code."""
    try:
        with cli.make_context(
            "python -m specstream", list(args)
        ) as context:  # cli.main would turn a closed pipe into an error
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _failed(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt, EOFError):
        return _failed("stopped", 130)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return _failed(_sentence(error), 1)
    except Exception as error:  # a bug in our code or a library: users get a sentence, not a traceback
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        return _failed(_unexpected(error), 1)
    return 0


def _close_output() -> None:
    """Discard pending output."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or replaced by a test
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())


def _unexpected(error: Exception) -> str:
    from specstream.model.memory import out_of_memory

    if out_of_memory(error):
        return "there is not enough memory for this: choose a smaller model, a shorter prompt or fewer tokens."
    return f"something went wrong ({type(error).__name__}: {_sentence(error)})"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _failed(words: str, code: int) -> int:
    click.echo(f"error: {one_line(words)}", err=True)
    return code
