"""Generate text with settings of this package instead of those in the model's folder.

A folder may set a million beams, an assistant model or several answers per prompt, and ``generate``
uses its settings wherever a call gives none. Here only token ids are taken from the folder.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from sos_deap.models.temporary import replaced

_TOKENS = (
    *("bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)


def token_settings(model: Any, tokenizer: Any = None) -> GenerationConfig:
    """Return generation settings with the special tokens of a model's own settings only.

    :param model: a model that generates; token ids outside its vocabulary are omitted.
    :param tokenizer: its tokenizer, which may supply the padding token; default: none.
    """
    found = dict[str, Any]()
    for name in _TOKENS:
        ids = _within(model, getattr(model.generation_config, name, None))
        found[name] = ids if len(ids) > 1 else next(iter(ids), None)
    return GenerationConfig(pad_token_id=padding_token(model, tokenizer), **found)


def padding_token(model: Any, tokenizer: Any = None) -> int:
    """Return the id of the padding token: the first candidate that the model has an embedding of.

    The candidates are the padding token of the model, that of the tokenizer, the end token of the
    model, that of the tokenizer, and 0. Padding is masked, so any token is suitable.

    :param model: the model.
    :param tokenizer: its tokenizer; default: none.
    """
    settings = getattr(model, "generation_config", None)
    for name in ("pad_token_id", "eos_token_id"):
        for owner in (model.config, settings, tokenizer):
            if ids := _within(model, getattr(owner, name, None)):
                return ids[0]
    return 0


def generate(model: Any, settings: GenerationConfig, **inputs: Any) -> Tensor:
    """Call ``model.generate`` with the given settings only, without the model's own.

    :param model: a model that generates.
    :param settings: the generation settings.
    :param inputs: further arguments of ``model.generate``.
    :returns: token ids, (sequences, tokens).
    """
    own: Any = model.generate
    if model.main_input_name != "input_ids":
        # Whisper's own method decodes segments again until they seem likely.
        own = partial(GenerationMixin.generate, model)
    with replaced(model, generation_config=settings):
        generated: Tensor = own(**inputs, generation_config=settings)
    return generated


def _within(model: Any, ids: Any) -> list[int]:
    """The token ids inside a model's vocabulary, from one id, a list of ids, or ``None``."""
    count = getattr(model.get_input_embeddings(), "num_embeddings", 0)
    several = ids if isinstance(ids, list | tuple) else [ids]
    return [one for one in several if type(one) is int and 0 <= one < count]
