"""The conversation above the prompt box: shown while the task is chat and the model has a chat template."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from specstream.data.chat import Chat
from specstream.info import EngineInfo

from ..html import render

TASK = "chat"
# The browser tab keeps the conversation, so that a page that is loaded again goes on with it.
FETCH = "() => sessionStorage.getItem('specstream-chat') ?? ''"
KEEP = "(text) => sessionStorage.setItem('specstream-chat', text)"

Updates = dict[Any, Any]


@dataclass
class ChatPanel:
    """The panel's parts. ``kept`` holds the conversation as JSON."""

    group: gr.Column
    turns: gr.HTML
    system: gr.Textbox
    new: gr.Button
    kept: gr.Textbox

    @property
    def outputs(self) -> list[Any]:
        return [self.turns, self.system, self.kept]

    def ask(self, values: Mapping[Any, Any]) -> Chat:
        """The conversation that the next message continues."""
        chat = Chat.from_json(values[self.kept])
        return replace(chat, id=chat.id or secrets.token_hex(8), system=values[self.system] or "")

    def asked(self, chat: Chat, message: str) -> Updates:
        """A message is being answered."""
        return {self.turns: render.conversation(chat.turns, message), self.kept: chat.to_json()}

    def show(self, chat: Chat) -> Updates:
        """All turns, none under way."""
        return {self.turns: render.conversation(chat.turns), self.kept: chat.to_json(), self.system: chat.system}

    def visible(self, task: str, info: EngineInfo | None) -> Updates:
        """The panel for a task and a model."""
        return {self.group: gr.update(visible=talks(task, info))}

    def wire(self, demo: gr.Blocks) -> None:
        """Start anew, and keep the conversation in the browser tab."""
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.new.click(lambda system: self.show(Chat(system=system)), self.system, self.outputs, queue=False, **hidden)
        self.kept.change(None, self.kept, None, js=KEEP, api_visibility="private")
        demo.load(None, None, self.kept, js=FETCH, api_visibility="private")


def talks(task: str, info: EngineInfo | None) -> bool:
    """Does this task hold conversations with this model?"""
    return task == TASK and info is not None and info.chat


def layout() -> ChatPanel:
    """Lay out the panel, out of sight."""
    with gr.Column(visible=False, elem_classes="ss-chat") as group:
        turns = gr.HTML(render.conversation(()))
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
    return ChatPanel(group, turns, system, new, kept)


def newer(kept: Chat, row: Mapping[str, Any]) -> Chat:
    """The conversation with the turn of a logged run, where the browser tab does not know that turn yet.

    One that was broken off is no turn.
    """
    values = (row["settings"] or {}).get("chat")
    if not values or not row["output"] or row["status"] != "finished":
        return kept
    logged = Chat.from_dict(values)
    return logged.add(row["prompt"], row["output"]) if (logged.id, logged.turns) == (kept.id, kept.turns) else kept
