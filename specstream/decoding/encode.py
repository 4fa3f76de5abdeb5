"""Text to token ids: prompts, and conversations in a model's chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from specstream.data.chat import Chat

NOTHING_BEFORE = Chat()
SURROGATE = re.compile(r"[\ud800-\udfff]")


class Encoding(Protocol):
    """What a tokenizer makes of a text."""

    @property
    def input_ids(self) -> list[int]: ...


class Tokenizer(Protocol):
    """What is used of a tokenizer: of transformers' own, or of the toy model's. What only some have (``bos_token``,
    ``chat_template``, ``added_tokens_decoder``) is asked for by name where it is used."""

    @property
    def eos_token_id(self) -> int | None: ...

    def __call__(self, text: str, add_special_tokens: bool = ...) -> Encoding: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = ..., **options: Any) -> str: ...

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any: ...


class PromptError(ValueError):
    """A prompt can't be used; the message is one sentence for the user."""


class EncodedPrompt(str):
    """A prompt whose token ids are fixed: encoding its text again would give others."""

    ids: tuple[int, ...] = ()

    def __str__(self) -> EncodedPrompt:  # a plain text would lose them
        return self


def chat_prompt(tokenizer: Tokenizer, text: str, before: Chat = NOTHING_BEFORE) -> str:
    """A user's message, with what came before it, in the model's own template; the text itself where it has none.

    Control tokens that somebody typed, such as ``<|im_end|>``, are encoded as ordinary text. Raises PromptError where
    the template refuses the conversation; some refuse system prompts, some need one.
    """
    if not getattr(tokenizer, "chat_template", None):
        return text
    messages = before.messages(text)
    try:
        prompt = _render(tokenizer, messages)
    except Exception as error:  # a template is a program of the model's makers and may fail in any way
        words = " ".join(str(error).split()).rstrip(".")
        hint = _hint(tokenizer, text, before)
        raise PromptError(f"The model's chat template refuses this conversation ({words}): {hint}.") from error
    return _with_plain_words(tokenizer, messages, prompt) if _types_control_tokens(tokenizer, messages) else prompt


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _hint(tokenizer: Tokenizer, text: str, before: Chat) -> str:
    """What to do about a template that refuses a conversation: found out by asking it."""
    if before.system.strip():
        return "leave the system prompt empty"
    try:
        _render(tokenizer, Chat(system="You are a helpful assistant.").messages(text))
    except Exception:  # with a system prompt it refuses too
        return "start a new conversation" if before.turns else "choose another model, or another task than chat"
    return "give a system prompt, or choose another model"


def _types_control_tokens(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> bool:
    added = (token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values())
    return any(token in message["content"] for token in added if token.strip() for message in messages)


def _with_plain_words(tokenizer: Tokenizer, messages: list[dict[str, str]], text: str) -> EncodedPrompt:
    """The prompt ``text`` of messages that hold control tokens. Raises PromptError where they can't be but tokens."""
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

    Raises PromptError for a prompt that is not Unicode text.
    """
    if isinstance(prompt, EncodedPrompt):
        return list(prompt.ids)
    if half := SURROGATE.search(prompt):
        raise PromptError(
            f"The prompt is not valid text: character {half.start() + 1:,} is half a character. Remove it."
        )
    return list(tokenizer(prompt, add_special_tokens=_takes_bos(tokenizer, prompt)).input_ids)


def least_tokens(tokenizer: Tokenizer, prompt: str, context: int) -> int:
    """How many tokens a prompt has at least, where its beginning alone is far beyond ``context``; else 0.

    A prompt of any length is refused in a moment so. One that ends shortly after the context is left to be counted.
    """
    length = 4 * context  # characters: about as many as fit
    while length < len(prompt):
        if (count := len(encode(tokenizer, prompt[:length]))) > 2 * context:
            return count
        length *= 4
    return 0


def too_long(tokens: int, context: int, more: str = "") -> str:
    """The sentence that refuses a prompt of this many tokens."""
    return f"The prompt has {tokens:,} tokens{more}; this model's context is {context:,}: shorten it."


def _takes_bos(tokenizer: Tokenizer, prompt: str) -> bool:
    """Whether the tokenizer's own special tokens, if it has any, are still to be added."""
    bos = getattr(tokenizer, "bos_token", None)
    return not (bos and prompt.startswith(bos))
