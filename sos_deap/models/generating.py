"""Text that models write with settings of this package's own.

A model's folder may ask for a million beams, for an assistant model or for several answers to each
prompt, and ``generate`` takes from there whatever a call leaves open: here that is token ids alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from sos_deap.models.narrow import replaced

_TOKENS = (
    *("bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)


def token_settings(model: Any, tokenizer: Any = None) -> GenerationConfig:
    """The special tokens of a model's generation settings, and nothing else of them.

    :param model: a model that generates; token ids beyond its vocabulary are left out.
    :param tokenizer: its tokenizer, for the padding token; see :func:`padding_token`.
    """
    found = dict[str, Any]()
    for name in _TOKENS:
        ids = _within(model, getattr(model.generation_config, name, None))
        found[name] = ids if len(ids) > 1 else next(iter(ids), None)
    return GenerationConfig(pad_token_id=padding_token(model, tokenizer), **found)


def padding_token(model: Any, tokenizer: Any = None) -> int:
    """The id of the token to fill up texts with: the first that the model has an embedding of.

    That is the model's, else the tokenizer's, else an end token of either, else 0: padding is
    masked, so that any will do.
    """
    settings = getattr(model, "generation_config", None)
    for name in ("pad_token_id", "eos_token_id"):
        for owner in (model.config, settings, tokenizer):
            if ids := _within(model, getattr(owner, name, None)):
                return ids[0]
    return 0


def generate(model: Any, settings: GenerationConfig, **inputs: Any) -> Tensor:
    """What ``model.generate`` gives with these settings and none of the model's own."""
    with replaced(model, generation_config=settings):
        written: Tensor = model.generate(**inputs, generation_config=settings)
    return written


def _within(model: Any, ids: Any) -> list[int]:
    """Token ids, of which there may be one, none or several, as far as the model has them."""
    count = getattr(model.get_input_embeddings(), "num_embeddings", 0)
    several = ids if isinstance(ids, list | tuple) else [ids]
    return [one for one in several if type(one) is int and 0 <= one < count]
