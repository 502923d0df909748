"""A pruned model's folder: the code that loads it anywhere, and what its config says."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import transformers
from transformers import PreTrainedModel

from sos_deap.errors import InputError
from sos_deap.files.atomic import write_text
from sos_deap.models import slicing
from sos_deap.models.families import FAMILIES
from sos_deap.models.slicing import pruned_class

#: Name of the module beside the weights.
CODE = "modeling_pruned"

_F = TypeVar("_F")


def _cached(function: _F) -> _F:
    cached: Any = functools.cache(function)  # type: ignore[arg-type]
    return cached  # type: ignore[no-any-return]  # mypy takes model classes for unhashable


@_cached
def pruned_type(stock: Any) -> Any:
    """The class of a pruned model: the stock one, sliced when it is built, complete when saved."""
    known: Any = getattr(transformers, stock.__name__, None)
    if known is not stock:
        return stock  # a class of the user's own, which no other process could import

    class Pruned(pruned_class(stock, FAMILIES[stock.config_class.model_type])):  # type: ignore[misc]
        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            """As the stock method, with the code and the per-layer head counts."""
            if kwargs.get("push_to_hub"):
                raise InputError("save_pretrained cannot push: call model.push_to_hub(name)")
            with _complete(self.config):
                super().save_pretrained(save_directory, *args, **kwargs)
            write_text(Path(save_directory, f"{CODE}.py"), _code(self.config))

    Pruned.__name__ = Pruned.__qualname__ = stock.__name__
    Pruned.__doc__, Pruned.__module__ = stock.__doc__, __name__
    return Pruned


def __getattr__(name: str) -> Any:
    """The pruned classes by name: pickle looks for a class in its module."""
    stock = getattr(transformers, name, None)
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_type(stock)


@contextmanager
def _complete(config: Any) -> Iterator[None]:
    """Give a config, while it is written, what only readers of the folder need."""
    config.auto_map = {auto: f"{CODE}.{name}" for auto, name in _auto_classes(type(config)).items()}
    if len(config.kept_heads) == config.num_hidden_layers:  # not where layers have cross-attention
        # Else the stock config classes cannot even check that hidden_size divides.
        config.allow_global_per_layer_attribute_access = True
        config.per_layer_config = _per_layer(config)
    try:
        yield
    finally:
        config.per_layer_config = None
        vars(config).pop("allow_global_per_layer_attribute_access", None)
        del config.auto_map


def _per_layer(config: Any) -> dict[int, dict[str, Any]]:
    """The numbers of heads, in the form that transformers has for layers that differ."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None)
    per_layer = {}
    for layer, keep in enumerate(config.kept_heads):
        groups = {head * kv_heads // heads for head in keep} if kv_heads else ()
        counts = {"num_attention_heads": len(keep)}
        counts |= {"num_key_value_heads": len(groups)} if kv_heads else {}
        per_layer[layer] = counts if keep else {"skip": ["attention"]}
    return per_layer


@_cached
def _auto_classes(config: Any) -> dict[str, str]:
    """The stock class behind each auto class that reads such a config."""
    found = {}
    for auto in (name for name in dir(transformers) if name.startswith("AutoModel")):
        mapping = getattr(transformers, auto)._model_mapping
        # A decoder cut out of an encoder-decoder has fewer layers than kept_heads lists.
        if config in mapping and not (config.is_encoder_decoder and auto == "AutoModelForCausalLM"):
            stock = mapping[config]
            found[auto] = (stock[0] if isinstance(stock, tuple) else stock).__name__
    return found


def auto_class(model: Any) -> str:
    """The name of the auto class that gives such a model."""
    found = _auto_classes(type(model.config))
    names = [auto for auto, stock in found.items() if stock == type(model).__name__]
    # Several may; the one for pre-training says least about what the model is for.
    return min(names, key=lambda auto: ("PreTraining" in auto, auto), default="AutoModel")


def _code(config: Any) -> str:
    """The file beside the weights: the module `slicing`, then the classes of this model."""
    source = Path(slicing.__file__).read_text(encoding="utf-8")
    names = sorted(set(_auto_classes(type(config)).values()))
    classes = "\n".join(f"{name} = pruned_class(transformers.{name}, FAMILY)" for name in names)
    family = FAMILIES[config.model_type]
    settings = "".join(
        f"    {field.name}={value!r},\n"
        for field in fields(family)
        if (value := getattr(family, field.name)) != field.default
    )
    return f"{source}\n\nimport transformers\n\nFAMILY = Family(\n{settings})\n{classes}\n"
