"""The drafter of each method. A new one needs settings in ``params``, a drafter beside this file, and a case here."""

from __future__ import annotations

from typing import assert_never

from specstream.decoding.drafters.draft_model import DraftModelDrafter
from specstream.decoding.drafters.early_exit import EarlyExitDrafter
from specstream.decoding.drafters.medusa import MedusaDrafter
from specstream.decoding.drafters.prompt_lookup import PromptLookupDrafter
from specstream.decoding.drafters.standard import StandardDrafter
from specstream.decoding.drafters.streaming import StreamingDrafter
from specstream.decoding.interfaces import Drafter, DraftingTarget, RewindableTarget
from specstream.decoding.sampling import Picker
from specstream.params import DraftModel, EarlyExit, Medusa, Method, PromptLookup, Standard, Streaming


def make_drafter(
    method: Method, target: DraftingTarget, ids: list[int], picker: Picker, second: RewindableTarget | None
) -> Drafter:
    """The drafter of one run. ``ids`` are its committed tokens; the list grows during the run. ``second`` is a new
    target on the draft model, needed only by its method.

    Raises ValueError for settings that the target can't support, such as a full tree that is too large.
    """
    match method:
        case Standard():
            return StandardDrafter()
        case Streaming():
            return StreamingDrafter(target, method, ids)
        case PromptLookup():
            return PromptLookupDrafter(ids, method)
        case Medusa():
            return MedusaDrafter(target, method, ids)
        case EarlyExit():
            return EarlyExitDrafter(target, ids, method)
        case DraftModel():
            assert second is not None, "no draft model"
            return DraftModelDrafter(second, ids, method, picker, target.vocabulary)
        case _:
            assert_never(method)
