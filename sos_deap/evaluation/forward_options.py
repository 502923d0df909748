"""Options of forward passes and their defaults."""

from __future__ import annotations

from typing import TypedDict

#: Default of the tokens in a forward pass, by type of device, and on all other devices.
BATCH_TOKENS = {"cpu": 4096}
BATCH_TOKENS_ACCELERATOR = 32_768

#: Default of the gigabytes of hidden states that are kept for later sub-models.
REUSE_MEMORY = 1.0

#: Ways to compute several sub-models: "shared" runs each layer once for all sub-models that are
#: equal up to it, without its removed units; "masked" runs all in one batch, with the removed units
#: masked; "auto" uses "shared" where the model allows it and it is faster.
BATCHING = ("auto", "shared", "masked")


class ForwardOptions(TypedDict, total=False):
    """Keyword arguments of :class:`ForwardRunner` that evaluators and the command line pass on."""

    batch_tokens: int | None
    batching: str
    reuse_memory: float | None
