"""Text to token ids, and token ids to text as they come: only what can't change any more, and no further than a stop
string."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from specstream.data.chat import Chat

NOTHING_BEFORE = Chat()
MARK = "\ufffd"  # what an unfinished UTF-8 character decodes to
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a byte-fallback piece of SentencePiece vocabularies
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


class TextStream:
    """Incremental detokeniser of one run: what it gives out, joined, is the decoding of all tokens at once.

    It decodes a window of the newest tokens and gives out what is new. Held back is what later tokens can still
    change: a character whose last bytes are missing, a run of byte-fallback pieces (one wrong byte turns the whole run
    into replacement marks), and an end that could be the start of a stop string. Once nothing is held back the window
    moves on. It keeps the tokens of the last move as context, because many decoders treat the first token of a text
    in a way of its own.

    A stop string is cut off with all that follows. One that is the name of a special token ends the text where that
    token comes.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._piece = getattr(tokenizer, "convert_ids_to_tokens", str)
        self._ids: list[int] = []  # the window; its first ``context`` tokens are given out
        self._context = 0
        self._text = ""  # the decoding of the window
        self._given = 0  # characters of it that are given out

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token. Returns the text that it releases, and whether a stop string is complete (it is cut off)."""
        self._ids.append(token)
        before, self._text = self._text, self._decode(self._ids)
        if self._text == before:
            return self._silent(token)
        pending = self._pending(self._text.rstrip(MARK))
        if (cut := self._cut(pending)) is not None:
            return pending[:cut], True
        if BYTE.fullmatch(self._piece(token) or ""):
            return "", False
        new = pending[: len(pending) - self._begun(pending)]
        self._given += len(new)
        if new and self._given == len(self._text):
            self._move_on()
        return new, False

    def flush(self) -> str:
        """What was held back, at the end of a run, up to a stop string."""
        pending = self._pending(self._text)
        self._given = len(self._text)
        return pending[: self._cut(pending)]

    def _pending(self, text: str) -> str:
        return text[self._given :]

    def _cut(self, text: str) -> int | None:
        """Where the stop string begins that is complete first."""
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        return min(found)[1] if found else None

    def _begun(self, text: str) -> int:
        """How many characters at the end could be the start of a stop string."""
        starts = (s[:n] for s in self._stop for n in range(1, min(len(s), len(text) + 1)))
        return max((len(start) for start in starts if text.endswith(start)), default=0)

    def _move_on(self) -> None:
        del self._ids[: self._context]
        self._context = len(self._ids)
        self._text = self._decode(self._ids)
        self._given = len(self._text)

    def _silent(self, token: int) -> tuple[str, bool]:
        """What a token gives that adds no text. A special one is not kept: it is no context for those to come."""
        name = "" if self._decode([token]) else token_text(self._tokenizer, token).strip()
        if name:
            self._ids.pop()
        return (self.flush(), True) if name in self._stop else ("", False)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """One token for display in a tree: special tokens by name, bytes of unfinished characters as they come."""
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
