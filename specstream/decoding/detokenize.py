"""Streaming detokenisation: emits only text that later tokens can't change, and nothing beyond a stop string."""

from __future__ import annotations

import re
from collections.abc import Sequence

from specstream.decoding import stop_strings
from specstream.decoding.encode import Tokenizer

LONG = 16  # new tokens after which the window advances, which takes one more decoding
MARK = "\ufffd"  # the decoding of an incomplete UTF-8 character
# A byte-fallback token of SentencePiece vocabularies; one of CTRL's that says that its word goes on.
UNFINISHED = re.compile(r"<0x[0-9A-Fa-f]{2}>|.*@@")


class TextStream:
    """Incremental detokeniser of one run: its outputs, joined, equal the decoding of all tokens at once.

    It decodes a window of the newest tokens and emits the new text. It holds back text that later tokens can still
    change: a character whose last bytes are missing, a run of byte-fallback tokens (one wrong byte turns the whole run
    into replacement characters), the mark of an unfinished word, and an end that could be the start of a stop string.
    When the window is long and nothing is held back, it advances. It keeps the tokens since the last advance as
    context, because many decoders treat the first token of a text specially.

    A stop string is cut off with everything after it. If it is the name of a special token, the text ends at that
    token.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._piece = getattr(tokenizer, "convert_ids_to_tokens", str)
        self._ids: list[int] = []  # the window; its first ``context`` tokens have been emitted
        self._context = 0
        self._text = ""  # the decoding of the window
        self._given = 0  # number of its characters that have been emitted

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token. Returns the text that it releases, and whether a stop string, which is cut off, is complete."""
        self._ids.append(token)
        before, self._text = self._text, self._decode(self._ids)
        if self._text == before:
            return self._silent(token)
        pending = self._pending(self._text.rstrip(MARK))
        if (at := stop_strings.cut(pending, self._stop)) is not None:
            return pending[:at], True
        if UNFINISHED.fullmatch(self._piece(token) or ""):
            return "", False
        new = pending[: len(pending) - stop_strings.begun(pending, self._stop)]
        self._given += len(new)
        if new and self._given == len(self._text) and len(self._ids) - self._context >= LONG:
            self._move_on()
        return new, False

    def flush(self) -> str:
        """The text held back at the end of a run, up to a stop string."""
        pending = self._pending(self._text)
        self._given = len(self._text)
        return pending[: stop_strings.cut(pending, self._stop)]

    def _pending(self, text: str) -> str:
        return text[self._given :]

    def _move_on(self) -> None:
        del self._ids[: self._context]
        self._context = len(self._ids)
        self._text = self._decode(self._ids)
        self._given = len(self._text)

    def _silent(self, token: int) -> tuple[str, bool]:
        """The result for a token that adds no text. A special token is not kept, as it is no context for later ones."""
        name = "" if self._decode([token]) else token_text(self._tokenizer, token).strip()
        if name:
            self._ids.pop()
        return (self.flush(), True) if name in self._stop else ("", False)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """One token for display in a tree: special tokens by name, incomplete characters as their bytes."""
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
