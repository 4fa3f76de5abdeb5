"""Start the page: ``python app.py`` in a checkout, ``specstream-ui`` if installed."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

os.environ["GRADIO_ANALYTICS_ENABLED"] = (
    "False"  # read when gradio is imported; otherwise it contacts other hosts at start
)


def address() -> str:
    """The default host without ``--host``: this machine only; on a Space, its proxy."""
    return "0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1"


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, Hugging Face Hub id or folder.")
@click.option("--adapter", default="auto", show_default=True, help="auto, none, a name, folder or hub:OWNER/NAME.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps or offload.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16, float16 or int8.")
@click.option("--draft-model", "draft", default="none", show_default=True, help="A second model: name, Hub id, folder.")
@click.option("--toy", is_flag=True, help="A scripted toy model: no weights, ready at once.")
@click.option(
    "--demo/--no-demo",
    default=None,
    envvar="SPECSTREAM_DEMO",
    help="For strangers: bundled models and adapters, short runs, each visitor sees their own. The default on a Space.",
)
@click.option(
    "--host",
    envvar="GRADIO_SERVER_NAME",
    default=address,
    show_default="127.0.0.1, on a Space 0.0.0.0",
    help="The address to serve on; 0.0.0.0 lets other machines open the page.",
)
@click.option(
    "--port",
    envvar="PORT",
    default=7860,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0: the first free one from 7860 on.",
)
@click.option("--db", type=click.Path(path_type=Path), help="The log of runs; without it one in your data folder.")
def main(host: str, port: int, db: Path | None, demo: bool | None, toy: bool, **choice: str) -> None:
    """Speculative Streaming in the browser."""
    logging.basicConfig(level=logging.WARNING)
    access_rules, app, engine_host = page_modules()
    choice |= {"model": access_rules.TOY} if toy else {}
    if choice["model"] == access_rules.TOY:
        _check_scripted(choice)
    allowed = access_rules.chosen(demo, local=for_this_machine())
    engines = engine_host.Engines(choice, rules=allowed)
    page = app.build(engines, *open_log(db))
    serve(page, host, port, app.launch_options(engines.rules))
    engines.load()  # in the background, and only now, because its imports would delay the page
    page.block_thread()


def page_modules() -> tuple[Any, Any, Any]:
    """Import the page, after ``--help`` is handled. Raises ClickException if a package is missing."""
    try:
        from . import access_rules, app
        from .jobs import engine_host
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"The page needs the package {error.name}, which is not installed: "
            "in a checkout, use make run, or pip install '.[ui]'."
        ) from None
    return access_rules, app, engine_host


def _check_scripted(choice: dict[str, str]) -> None:
    """Raise ClickException for a choice that has no effect on the toy model."""
    from specstream.hub.catalogue import ModelError, check_scripted

    try:
        check_scripted(**{name: value for name, value in choice.items() if name != "model"})
    except ModelError as error:
        raise click.ClickException(str(error)) from None


def for_this_machine() -> bool:
    """Whether the page is for this machine only: neither a host nor a share was requested, and this is not a Space."""
    named = click.get_current_context().get_parameter_source("host") is not ParameterSource.DEFAULT
    shared = os.environ.get("GRADIO_SHARE", "").lower() == "true"
    return not (named or shared or os.environ.get("SPACE_ID"))


def serve(page: Any, host: str, port: int, options: dict[str, Any]) -> None:
    """Serve the page in separate threads; returns once it answers. Raises ClickException with one sentence."""
    try:
        page.launch(server_name=host, server_port=port or None, prevent_thread_lock=True, **options)
    except OSError:
        raise click.ClickException(
            f"The page can't be served on port {port}: something else uses it, or this machine is too busy to begin "
            "within five seconds. Choose another port with --port, or try again."
        ) from None
    except Exception as error:  # gradio first requests its own page, which a proxy can prevent
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise click.ClickException(
            f"The page is served, but this machine can't reach it ({reason}): "
            "with a proxy, set NO_PROXY=localhost,127.0.0.1 and start again."
        ) from None


def open_log(path: Path | None) -> tuple[Any, str]:
    """The log and an empty text; or, if it can't be written, None and a sentence: the page works without it."""
    from specstream.runlog import RunLog, RunLogError

    try:
        return RunLog(path), ""
    except RunLogError as error:
        words = f"Runs are not logged: {error}"
        click.echo(words, err=True)
        return None, words


if __name__ == "__main__":
    main()
