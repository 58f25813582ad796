"""Llama checkpoints with weights set by hand, whose answer hangs on one token of the context."""

from collections.abc import Mapping

from benchmarks.needle_models.induction import INDUCTION
from benchmarks.needle_models.lookup import LOOKUP
from benchmarks.needle_models.needle import Needle, NeedlePrompt

__all__ = ["INDUCTION", "LOOKUP", "NEEDLES", "Needle", "NeedlePrompt"]

NEEDLES: Mapping[str, Needle] = {needle.name: needle for needle in (LOOKUP, INDUCTION)}
