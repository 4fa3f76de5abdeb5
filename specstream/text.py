"""Token ids to text as they come: whole characters only, stop strings found across tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specstream.chat import Chat

NOTHING_BEFORE = Chat()
MARK = "\ufffd"  # what an unfinished UTF-8 character decodes to
MOST_MARKS = 3  # an unfinished character has at most three bytes; some decoders give a mark for each


def chat_prompt(tokenizer: Any, text: str, before: Chat = NOTHING_BEFORE) -> str:
    """A user's message, with what came before it, in the model's own template; the text itself where it has none.

    Raises ValueError where the template refuses the conversation; some refuse system prompts.
    """
    if not getattr(tokenizer, "chat_template", None):
        return text
    try:
        return str(tokenizer.apply_chat_template(before.messages(text), tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the model's makers and may fail in any way
        hint = "leave the system prompt empty" if before.system.strip() else "start a new conversation"
        raise ValueError(f"The model's chat template refuses this conversation ({error}): {hint}.") from error


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, which may begin with the template's own special tokens."""
    bos = getattr(tokenizer, "bos_token", None)
    return list(tokenizer(prompt, add_special_tokens=not (bos and prompt.startswith(bos))).input_ids)


class TextStream:
    """Incremental detokeniser of one run.

    It decodes from a safe offset and gives the difference, so that tokenisers which decode a token differently at the
    start of a text (SentencePiece) come out right. What could still change is held back: an unfinished character, and
    an end that could be the start of a stop string.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._start = self._settled = 0  # decoding begins at ids[start]; ids[:settled] end with a whole character
        self._given = 0  # characters of that decoding that are given out
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token. Returns the text that it releases, and whether a stop string is complete (it is cut off)."""
        self._ids.append(token)
        new = self._decode_new()
        pending = self._held + new
        cut = min((at for s in self._stop if (at := pending.find(s)) >= 0), default=-1)
        if cut >= 0:
            self._held = ""
            return pending[:cut], True
        keep = max((n for s in self._stop for n in range(1, len(s)) if pending.endswith(s[:n])), default=0)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep], False

    def flush(self) -> str:
        """What was held back, at the end of a run."""
        rest = self._held + self._decode_new(final=True)
        self._held = ""
        return rest

    def _decode_new(self, final: bool = False) -> str:
        text = self._decode(self._ids[self._start :])
        marks = 0 if final else min(MOST_MARKS, len(text) - len(text.rstrip(MARK)))
        whole = text[: len(text) - marks]
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        if not marks:  # move on, keeping the last settled piece as context for the decoder
            self._start, self._settled = self._settled, len(self._ids)
            self._given = len(self._decode(self._ids[self._start :]))
        return new

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def token_text(tokenizer: Any, token: int) -> str:
    """One token for display in a tree: special tokens by name, bytes of unfinished characters as they come."""
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
