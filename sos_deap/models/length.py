"""How many tokens a model can read."""

from __future__ import annotations

from typing import Any

from torch import nn


def most_tokens(model: Any) -> int | None:
    """The most tokens of a sequence that a model has positions for; ``None`` without a bound.

    Some architectures, RoBERTa among them, number positions from the one after that of the padding
    token: their table of 514 positions serves 512 tokens.
    """
    limits = [getattr(model.config, "max_position_embeddings", None)]
    limits += [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(module, nn.Embedding)
        and module.padding_idx is not None
    ]
    return min((limit for limit in limits if limit), default=None)
