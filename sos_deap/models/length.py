"""The maximum sequence length of a model."""

from __future__ import annotations

from typing import Any

from torch import nn


def most_tokens(model: Any) -> int | None:
    """Return the maximum number of tokens in a sequence for which a model has positions.

    Some architectures, such as RoBERTa, number positions from the padding token's id plus one, so
    that a table of 514 positions serves 512 tokens.

    :param model: the model.
    :returns: the number of tokens; ``None`` if there is no limit.
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
