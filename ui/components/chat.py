"""The conversation above the prompt box: shown while the task is chat and the model has a chat template."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from specstream.data.chat import Chat
from specstream.events import Step
from specstream.info import EngineInfo

from ..html import chat as html
from .handlers import QUIET, Updates

TASK = "chat"
# The browser tab keeps the conversation, so that a reloaded page continues it.
FETCH = "() => sessionStorage.getItem('specstream-chat') ?? ''"
KEEP = "(text) => sessionStorage.setItem('specstream-chat', text)"
# With a delay: the message must be in the box first.
PRESS_RUN = "() => setTimeout(() => document.getElementById('run').click(), 150)"
SHOW, HIDE = "Show draft tree", "Hide draft tree"
UNFOLD = f"() => document.documentElement.classList.toggle('ss-draft-shown') ? '{HIDE}' : '{SHOW}'"
SAME = '<p class="ss-words">At temperature 0, Regenerate gives the same text.</p>'
FOCUS = "() => setTimeout(() => document.querySelector('.ss-prompt textarea').focus(), 150)"


@dataclass
class ChatPanel:
    """The panel's parts. ``kept`` holds the conversation as JSON."""

    group: gr.Column
    turns: gr.HTML
    system: gr.Textbox
    new: gr.Button
    again: gr.Button
    edit: gr.Button
    same: gr.HTML  # when an answer that is generated again stays the same
    draft: gr.Button  # shows the texts and the tree of the last answer, which a conversation folds away
    kept: gr.Textbox

    @property
    def outputs(self) -> list[Any]:
        return [self.turns, self.system, self.kept, self.again, self.edit, self.same]

    def ask(self, values: Mapping[Any, Any]) -> Chat:
        """The conversation that the next message continues."""
        chat = Chat.from_json(values[self.kept])
        return replace(chat, id=chat.id or secrets.token_hex(8), system=values[self.system] or "")

    def asked(self, chat: Chat, message: str) -> Updates:
        """A message is being answered."""
        return {self.turns: html.conversation(chat.turns, message), self.kept: chat.to_json(), **self._last(False)}

    def writing(self, chat: Chat, message: str, steps: Sequence[Step]) -> Updates:
        """Its answer so far."""
        return {self.turns: html.conversation(chat.turns, message, steps)}

    def stopped(self, chat: Chat, message: str, steps: Sequence[Step]) -> Updates:
        """Its answer was interrupted: it is shown, but is not part of the conversation."""
        seen = {self.turns: html.conversation(chat.turns, message, steps, stopped=True)}
        return self.show(chat) | seen | self._last(False)  # those buttons belong to the previous answer

    def show(self, chat: Chat, steps: Sequence[Step] = ()) -> Updates:
        """All turns, with none in progress. ``steps`` are those of the last answer, if known."""
        shown = {self.turns: html.conversation(chat.turns, steps=steps), self.kept: chat.to_json()}
        return shown | {self.system: chat.system, **self._last(bool(chat.turns))}

    def _last(self, there: bool) -> Updates:
        """The actions on the last answer, if there is one."""
        return {part: gr.update(visible=there) for part in (self.again, self.edit, self.same)}

    def back(self, kept: str) -> tuple[str, Updates]:
        """The last message, and the conversation as it was before."""
        chat = Chat.from_json(kept)
        if not chat.turns:
            return "", {self.turns: gr.skip()}
        return chat.turns[-1][0], self.show(replace(chat, turns=chat.turns[:-1]))

    def visible(self, task: str, info: EngineInfo | None) -> Updates:
        """The panel for a task and a model."""
        return {self.group: gr.update(visible=talks(task, info))}

    def wire(self, demo: gr.Blocks, prompt: gr.Textbox) -> None:
        """Connect starting anew, going back to the last message, and storing the conversation in the browser tab."""

        def back(kept: str) -> Updates:
            message, shown = self.back(kept)
            return shown | ({prompt: message} if message else {})

        self.new.click(lambda system: self.show(Chat(system=system)), self.system, self.outputs, queue=False, **QUIET)
        self.draft.click(None, None, self.draft, js=UNFOLD, api_visibility="private")
        shown = [*self.outputs, prompt]
        self.edit.click(back, self.kept, shown, queue=False, **QUIET).then(None, js=FOCUS, api_visibility="private")
        self.again.click(back, self.kept, shown, queue=False, **QUIET).then(
            None, js=PRESS_RUN, api_visibility="private"
        )
        self.kept.change(None, self.kept, None, js=KEEP, api_visibility="private")
        demo.load(None, None, self.kept, js=FETCH, api_visibility="private")


def talks(task: str, info: EngineInfo | None) -> bool:
    """Whether this task is a conversation with this model."""
    return task == TASK and info is not None and info.chat


def layout() -> ChatPanel:
    """Lay out the panel, hidden."""
    with gr.Column(visible=False, elem_classes="ss-chat") as group:
        turns = gr.HTML(html.conversation(()))
        with gr.Row():
            again = gr.Button("Regenerate", size="sm", scale=0, min_width=130, visible=False)
            edit = gr.Button("Edit my last message", size="sm", scale=0, min_width=170, visible=False)
            draft = gr.Button(SHOW, size="sm", scale=0, min_width=150)
            new = gr.Button("New chat", size="sm", scale=0, min_width=110)
            same = gr.HTML(SAME, visible=False, min_width=200)
        system = gr.Textbox(
            label="System prompt, optional", placeholder="how the model should answer", lines=1, max_lines=4,
            elem_classes="ss-inline",
        )  # fmt: skip
    kept = gr.Textbox(visible="hidden", show_label=False)
    return ChatPanel(group, turns, system, new, again, edit, same, draft, kept)


def newer(kept: Chat, row: Mapping[str, Any]) -> Chat:
    """The conversation including the turn of a logged run, if the browser tab does not know that turn yet.

    An interrupted answer is not a turn.
    """
    values = (row["settings"] or {}).get("chat")
    if not values or not row["output"] or row["status"] != "finished":
        return kept
    logged = Chat.from_dict(values)
    return logged.add(row["prompt"], row["output"]) if (logged.id, logged.turns) == (kept.id, kept.turns) else kept
