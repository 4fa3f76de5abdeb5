"""Sharing a run or a race: text, a link, and files that anyone can open, created on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from ..export import picture
from ..export.story import Story
from ..files import downloads, place
from ..jobs.engine_host import Engines
from .handlers import QUIET, Updates

FORMS = {"html": "Page (HTML)", "png": "Picture", "webp": "Animation"}
# The row is found by its id: in Safari a clicked button has no focus to find it by.
SAY = """(...given) => {
  const said = document.querySelector("#%s .ss-said-shared");
  if (said) said.textContent = "%s";
  return given;
}"""
COPY = """async (row, text, copied, failed) => {
  const said = document.querySelector(`#${row} .ss-said-shared`), focused = document.activeElement;
  let done = true;
  try { await navigator.clipboard.writeText(text); }
  catch {  // no clipboard without https, but on this machine
    const box = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(box);
    box.select();
    done = document.execCommand("copy");
    box.remove();
    focused?.focus({ preventScroll: true });
  }
  if (said) said.textContent = done ? copied : "The browser does not allow copying: " + failed;
}"""
COPY_TEXT = "(text) => (" + COPY + ")('%s', text, 'Copied', 'make a page instead')"
COPY_LINK = (
    """(run) => {
  const link = location.origin + location.pathname + "?run=" + run;
  const local = /^(localhost|127\\.|0\\.0\\.0\\.0|\\[::1\\])/.test(location.hostname);
  return ("""
    + COPY
    + """)("%s", link, local ? "Copied: the link works on this machine only" : "Copied", "the link is " + link);
}"""
)
FETCH = """() => setTimeout(() => {
  document.querySelector("#%s").click();
  document.querySelector("#%s .ss-said-shared").textContent = "";
}, 200)"""  # once the link is on the page
# In a column that is shown later, gradio shows the hidden parts too: the class keeps them out of sight.
HIDDEN: dict[str, Any] = {"visible": "hidden", "elem_classes": "ss-hidden"}
Page = Callable[[Any, Story, str | None], str]
_numbers = count(1)


@dataclass
class Share:
    """The row's parts. ``linked``: other people can follow the link to the run."""

    row: gr.Row
    words: gr.Textbox
    run: gr.Textbox
    copy: gr.Button
    link: gr.Button
    makes: dict[str, gr.Button]
    file: gr.DownloadButton
    linked: bool = True

    @property
    def outputs(self) -> list[Any]:
        return [self.row, self.words, self.run, self.link]

    def show(self, story: Story | None) -> Updates:
        """Offer to share; hidden while there is nothing."""
        if story is None:
            return {self.row: gr.update(visible=False)}
        return {
            self.row: gr.update(visible=True),
            self.words: story.words,
            self.run: story.run,
            self.link: gr.update(visible=bool(story.run) and self.linked),
        }

    def wire(self, source: gr.State, tell: Callable[[Any], Story | None], page: Page, engines: Engines | None) -> None:
        """``source`` is the input of ``tell``, which makes a story, and of ``page``, which makes the HTML file."""
        self.linked = linked = engines is None or engines.rules.may_see_all

        def work(form: str) -> Callable[[Any, gr.Request], Any]:
            def made(value: Any, request: gr.Request) -> Any:
                story = tell(value) if value is not None else None
                if story is None:
                    raise gr.Error("There is nothing to share yet: run a prompt first.", print_exception=False)
                return write(form, story, lambda: page(value, story, page_address(request, linked)))

            return made

        hidden: dict[str, Any] = {"api_visibility": "private", "queue": False}
        row = self.row.elem_id
        self.copy.click(None, self.words, None, js=COPY_TEXT % row, **hidden)
        self.link.click(None, self.run, None, js=COPY_LINK % row, **hidden)
        self.words.change(None, None, None, js=SAY % (row, ""), **hidden)  # what was copied is of another run
        for form, button in self.makes.items():
            button.click(work(form), source, self.file, js=SAY % (row, "Making the file"), **QUIET).success(
                None, js=FETCH % (self.file.elem_id, row), api_visibility="private"
            )


def write(form: str, story: Story, page: Callable[[], str]) -> str:
    """Create a file. Returns its path."""
    file = place(downloads(), f"speculative-streaming-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.{form}")
    file.write_bytes(
        page().encode() if form == "html" else picture.png(story) if form == "png" else picture.webp(story)
    )
    return str(file)


def page_address(request: gr.Request, linked: bool) -> str | None:
    """The URL at which others find the runs; None if there is none.

    A URL of one's own machine would lead others to theirs. ``linked``: visitors see each other's runs.
    """
    origin = str(request.headers.get("origin") or "")
    host = urlsplit(origin).hostname or ""
    own = host in ("", "localhost", "0.0.0.0", "::1") or host.startswith("127.")
    return None if own or not linked else f"{origin}/"


def layout(story: Story | None = None) -> Share:
    """Lay out the row."""
    number = next(_numbers)
    with gr.Row(visible=story is not None, elem_id=f"share-{number}", elem_classes="ss-share") as row:
        copy = gr.Button("Copy text", size="sm", scale=0, min_width=90)
        link = gr.Button("Copy link", size="sm", scale=0, min_width=90, visible=bool(story and story.run))
        makes = {form: gr.Button(label, size="sm", scale=0, min_width=90) for form, label in FORMS.items()}
        gr.HTML('<span class="ss-said-shared" role="status"></span>', min_width=100)
    words = gr.Textbox(story.words if story else "", show_label=False, **HIDDEN)
    run = gr.Textbox(story.run if story else "", show_label=False, **HIDDEN)
    file = gr.DownloadButton(elem_id=f"shared-{number}", **HIDDEN)
    return Share(row, words, run, copy, link, makes, file)
