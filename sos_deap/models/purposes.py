"""Choose the class that a model is read as, by what the model is used for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedModel,
)

from sos_deap.errors import InputError
from sos_deap.models.families import FAMILIES
from sos_deap.models.sources import read_config


def is_encoder(config: Any) -> bool:
    """Whether a config is that of an encoder such as BERT, which reads text in both directions."""
    # Architectures such as BERT also have causal classes, for their decoder variant only.
    decoder = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not decoder


def kind_of(name: str) -> str:
    """Determine from its config.json what a model was saved as.

    :param name: as for :func:`sos_deap.load`.
    :returns: ``"classifier"`` or ``"multi-label classifier"`` of sequences, ``"encoder-decoder"``,
        ``"encoder"``, or ``"causal"`` for any other.
    :raises InputError: if the config.json is missing or damaged.
    """
    config = read_config(name)
    names = config.architectures
    if isinstance(names, list) and str(names[:1]).endswith("ForSequenceClassification']"):
        several = config.problem_type == "multi_label_classification"
        return "multi-label classifier" if several else "classifier"
    if config.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if is_encoder(config) else "causal"


def feed_forward_genes(name: str) -> str | None:
    """Return the finest genes that a saved model has in its feed-forwards.

    :param name: as for :func:`sos_deap.load`.
    :returns: ``"channels"``, also for an architecture without a row, of which it is unknown;
        ``"experts"``; or ``None`` if there are no such genes.
    :raises InputError: if the config.json is missing or damaged.
    """
    family = FAMILIES.get(read_config(name).model_type)
    if family is None or family.feed_forward is not None:
        return "channels"
    return None if family.experts is None else "experts"


def groups_heads(name: str) -> bool:
    """Whether the query heads of a saved model share several key/value heads in groups.

    With one key/value head for all query heads it is false, since removing any of them leaves one
    group.

    :param name: as for :func:`sos_deap.load`.
    :raises InputError: if the config.json is missing or damaged.
    """
    config = read_config(name)
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    return 1 < (getattr(text, "num_key_value_heads", None) or heads or 1) != heads


def own_class(name: str, config: Any) -> Any:
    """Return the class that a model was saved from.

    :param name: the model's name, for the error message.
    :param config: its config.
    :raises InputError: if its config.json does not name a model class of transformers.
    """
    architectures = config.architectures
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    stock = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise InputError(
            f"config.json of {name} names the model class {architecture!r}, unknown to transformers"
        )
    return stock


def _language_model(name: str, config: Any) -> Any:
    if is_encoder(config):
        return MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    what = "encoder-decoder" if config.is_encoder_decoder else "model"
    raise InputError(
        f"{name} is a {config.model_type} {what}: this task needs a causal language model or "
        "an encoder"
    )


def _generator(name: str, config: Any) -> Any:
    if config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not is_encoder(config):
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    raise InputError(
        f"{name} is a {config.model_type} encoder and does not generate text: summarization needs "
        "a causal or an encoder-decoder model"
    )


def _classifier(name: str, config: Any) -> Any:
    stock: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    own = own_class(name, config)
    if stock is None or not issubclass(own, stock):
        raise InputError(
            f"{name} is a {own.__name__}, without a classifier: give a model that was fine-tuned "
            f"for sequence classification{f' ({stock.__name__})' if stock else ''}"
        )
    if config.num_labels < 2:
        raise InputError(f"{name} has one label, for regression: classification needs at least 2")
    return stock


#: Uses of a model, each with the function that returns its class from its name and config.
PURPOSES: dict[str, Callable[[str, Any], Any]] = {
    "any": own_class,
    "classification": _classifier,
    "generation": _generator,
    "language modelling": _language_model,
}
