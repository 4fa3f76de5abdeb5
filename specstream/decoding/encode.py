"""Text to token ids: prompts, and conversations in a model's chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from specstream.data.chat import Chat

NOTHING_BEFORE = Chat()
SURROGATE = re.compile(r"[\ud800-\udfff]")


class Encoding(Protocol):
    """The result of a tokenizer for a text."""

    @property
    def input_ids(self) -> list[int]: ...


class Tokenizer(Protocol):
    """The interface of a tokenizer, transformers' or the toy model's. Attributes that only some have (``bos_token``,
    ``chat_template``, ``added_tokens_decoder``) are looked up by name where they are used."""

    @property
    def eos_token_id(self) -> int | None: ...

    def __call__(self, text: str, add_special_tokens: bool = ...) -> Encoding: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = ..., **options: Any) -> str: ...

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any: ...


class PromptError(ValueError):
    """A prompt can't be used; the message is one sentence for the user."""


class EncodedPrompt(str):
    """A prompt with fixed token ids, because encoding its text again would give other ids."""

    ids: tuple[int, ...] = ()

    def __str__(self) -> EncodedPrompt:  # a plain str would lose the ids
        return self


def chat_prompt(tokenizer: Tokenizer, text: str, before: Chat = NOTHING_BEFORE) -> str:
    """A user's message, with the conversation before it, in the model's own template; the plain text if it has none.

    Typed control tokens, such as ``<|im_end|>``, are encoded as ordinary text. Raises PromptError if the template
    rejects the conversation or writes nothing (some reject system prompts, some require one), and for text that is not
    valid Unicode.
    """
    if not getattr(tokenizer, "chat_template", None):
        return text
    messages = before.messages(text)
    try:
        prompt = _render(tokenizer, messages)
    except Exception as error:  # a template is a program by the model's authors and may fail in any way
        words = " ".join(str(error).split()).rstrip(".") or "it gives no reason"
        hint = _hint(tokenizer, text, before)
        raise PromptError(f"The model's chat template refuses this conversation ({words}): {hint}.") from error
    _refuse_halves(prompt)
    return _with_plain_words(tokenizer, messages, prompt) if _types_control_tokens(tokenizer, messages) else prompt


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    if not prompt.strip():
        raise ValueError("it writes nothing")
    return prompt


def _hint(tokenizer: Tokenizer, text: str, before: Chat) -> str:
    """What to do about a template that rejects a conversation, found by trying alternatives."""
    if before.system.strip():
        return "leave the system prompt empty"
    try:
        _render(tokenizer, Chat(system="You are a helpful assistant.").messages(text))
    except Exception:  # it rejects the conversation with a system prompt too
        return "start a new conversation" if before.turns else "choose another model, or another task than chat"
    return "give a system prompt, or choose another model"


def _types_control_tokens(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> bool:
    added = (token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values())
    return any(token in message["content"] for token in added if token.strip() for message in messages)


def _with_plain_words(tokenizer: Tokenizer, messages: list[dict[str, str]], text: str) -> EncodedPrompt:
    """The prompt ``text`` for messages that contain control tokens. Raises PromptError if they can't be encoded as
    text."""
    prompt = EncodedPrompt(text)
    try:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
        )
    except ValueError as error:
        raise PromptError("The message holds a control token that this model can't read as text: remove it.") from error
    prompt.ids = (*(tokenizer("").input_ids if _takes_bos(tokenizer, text) else ()), *ids)
    return prompt


def encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt, which may begin with the template's own special tokens.

    Raises PromptError if the prompt is not valid Unicode.
    """
    if isinstance(prompt, EncodedPrompt):
        return list(prompt.ids)
    _refuse_halves(prompt)
    return list(tokenizer(prompt, add_special_tokens=_takes_bos(tokenizer, prompt)).input_ids)


def _refuse_halves(prompt: str) -> None:
    """Raise PromptError for a prompt that contains a lone surrogate."""
    if half := SURROGATE.search(prompt):
        raise PromptError(
            f"The prompt is not valid text: character {half.start() + 1:,} is half a character. Remove it."
        )


def least_tokens(tokenizer: Tokenizer, prompt: str, context: int) -> int:
    """A lower bound of a prompt's tokens if its beginning alone is far beyond ``context``; else 0.

    It allows a prompt of any length to be rejected at once. One that is only a little too long is not detected here.
    """
    length = 4 * context  # about as many characters as fit
    while length < len(prompt):
        if (count := len(encode(tokenizer, prompt[:length]))) > 2 * context:
            return count
        length *= 4
    return 0


def too_long(tokens: int, context: int, more: str = "") -> str:
    """The error message for a prompt of this many tokens."""
    return f"The prompt has {tokens:,} tokens{more}; this model's context is {context:,}: shorten it."


def _takes_bos(tokenizer: Tokenizer, prompt: str) -> bool:
    """Whether the tokenizer's own special tokens, if any, must still be added."""
    bos = getattr(tokenizer, "bos_token", None)
    return not (bos and prompt.startswith(bos))
