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
# The browser tab keeps the conversation, so that a page that is loaded again goes on with it.
FETCH = "() => sessionStorage.getItem('specstream-chat') ?? ''"
KEEP = "(text) => sessionStorage.setItem('specstream-chat', text)"
# A moment later: the message has to be in the box.
PRESS_RUN = "() => setTimeout(() => document.getElementById('run').click(), 150)"
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
    kept: gr.Textbox

    @property
    def outputs(self) -> list[Any]:
        return [self.turns, self.system, self.kept, self.again, self.edit]

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
        """Its answer was broken off: it is seen, and no part of the conversation."""
        return self.show(chat) | {self.turns: html.conversation(chat.turns, message, steps, stopped=True)}

    def show(self, chat: Chat, steps: Sequence[Step] = ()) -> Updates:
        """All turns, none under way. ``steps`` are those of the last answer, where they are known."""
        shown = {self.turns: html.conversation(chat.turns, steps=steps), self.kept: chat.to_json()}
        return shown | {self.system: chat.system, **self._last(bool(chat.turns))}

    def _last(self, there: bool) -> Updates:
        """What can be done with the last answer, while there is one."""
        return {self.again: gr.update(visible=there), self.edit: gr.update(visible=there)}

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
        """Start anew, go back to the last message, and keep the conversation in the browser tab."""

        def back(kept: str) -> Updates:
            message, shown = self.back(kept)
            return shown | ({prompt: message} if message else {})

        self.new.click(lambda system: self.show(Chat(system=system)), self.system, self.outputs, queue=False, **QUIET)
        shown = [*self.outputs, prompt]
        self.edit.click(back, self.kept, shown, queue=False, **QUIET).then(None, js=FOCUS, api_visibility="private")
        self.again.click(back, self.kept, shown, queue=False, **QUIET).then(
            None, js=PRESS_RUN, api_visibility="private"
        )
        self.kept.change(None, self.kept, None, js=KEEP, api_visibility="private")
        demo.load(None, None, self.kept, js=FETCH, api_visibility="private")


def talks(task: str, info: EngineInfo | None) -> bool:
    """Does this task hold conversations with this model?"""
    return task == TASK and info is not None and info.chat


def layout() -> ChatPanel:
    """Lay out the panel, out of sight."""
    with gr.Column(visible=False, elem_classes="ss-chat") as group:
        turns = gr.HTML(html.conversation(()))
        with gr.Row():
            again = gr.Button("Answer again", size="sm", scale=0, min_width=130, visible=False)
            edit = gr.Button("Edit my last message", size="sm", scale=0, min_width=170, visible=False)
        with gr.Row(elem_classes="ss-search"):
            system = gr.Textbox(
                label="System prompt, optional",
                placeholder="how the model should answer",
                lines=1,
                max_lines=4,
                scale=4,
            )
            new = gr.Button("New chat", size="sm", scale=0, min_width=110)
    kept = gr.Textbox(visible="hidden", show_label=False)
    return ChatPanel(group, turns, system, new, again, edit, kept)


def newer(kept: Chat, row: Mapping[str, Any]) -> Chat:
    """The conversation with the turn of a logged run, where the browser tab does not know that turn yet.

    One that was broken off is no turn.
    """
    values = (row["settings"] or {}).get("chat")
    if not values or not row["output"] or row["status"] != "finished":
        return kept
    logged = Chat.from_dict(values)
    return logged.add(row["prompt"], row["output"]) if (logged.id, logged.turns) == (kept.id, kept.turns) else kept
