"""Medusa (Cai et al. 2024): heads on the last accepted row's final hidden state draft the next tree, one depth each.

Here the tree is grown best-first, by our own rule; Medusa's is chosen once per task.
"""

from __future__ import annotations

from collections.abc import Sequence

from specstream.decoding.drafters.levels import LevelDrafter
from specstream.decoding.interfaces import MedusaSource
from specstream.params import Medusa


class MedusaDrafter(LevelDrafter):
    """Drafts with the heads of the last accepted row, and with copies of ``ids``, the growing list of committed tokens.

    Raises ValueError for a full tree that is too large.
    """

    def __init__(self, source: MedusaSource, params: Medusa, ids: Sequence[int]) -> None:
        super().__init__(source, source.medusa_logits, source.medusa_ids, source.medusa_depth, params, ids)
