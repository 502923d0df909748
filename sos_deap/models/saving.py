"""Save a pruned model with the code that loads it and the numbers of its units in its config."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import transformers
from transformers import PreTrainedModel

from sos_deap.errors import InputError
from sos_deap.files.atomic import write_text
from sos_deap.models.families import FAMILIES
from sos_deap.models.pruned_class import pruned_class

#: Name of the module that is saved with the weights.
CODE = "modeling_pruned"

#: Modules in this folder that it consists of. They import torch, transformers and each other only,
#: and no name is defined in two of them.
COPIED = ("family", "sites", "empty", "sizes", "slices", "pruned_class")

_HEAD = '"""Classes of a pruned model, and the code that slices them."""\n\n' + (
    "from __future__ import annotations\n"
)
_OWN_IMPORT = re.compile(r"^from (?:__future__|sos_deap\S+) import (?:\([^)]*\)|.*)\n", re.M)

_F = TypeVar("_F")


def _cached(function: _F) -> _F:
    cached: Any = functools.cache(function)  # type: ignore[arg-type]
    return cached  # type: ignore[no-any-return]  # mypy takes model classes as unhashable


@_cached
def pruned_type(stock: Any) -> Any:
    """Return the class of a pruned model: it is sliced when built, and saves the code to load it.

    :param stock: the class of the model before pruning.
    :returns: a subclass of it with the same name; ``stock`` itself if transformers does not define
        it, since other processes could not import its subclass.
    """
    defined: Any = getattr(transformers, stock.__name__, None)
    if defined is not stock:
        return stock

    class Pruned(pruned_class(stock, FAMILIES[stock.config_class.model_type])):  # type: ignore[misc]
        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            """Save the model as the stock method does, with code and the units per layer."""
            if kwargs.get("push_to_hub"):
                raise InputError("save_pretrained cannot push: call model.push_to_hub(name)")
            with _complete(self.config):
                super().save_pretrained(save_directory, *args, **kwargs)
            write_text(Path(save_directory, f"{CODE}.py"), _code(self.config))

    Pruned.__name__ = Pruned.__qualname__ = stock.__name__
    Pruned.__doc__, Pruned.__module__ = stock.__doc__, __name__
    return Pruned


def __getattr__(name: str) -> Any:
    """Return a pruned class by its name, since pickle looks up classes in their module."""
    stock = getattr(transformers, name, None)
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_type(stock)


@contextmanager
def _complete(config: Any) -> Iterator[None]:
    """Add to a config, inside the context, what only other programs read from the folder."""
    config.auto_map = {auto: f"{CODE}.{name}" for auto, name in _auto_classes(type(config)).items()}
    layers = getattr(config, "num_hidden_layers", None)
    if len(config.kept_heads) == layers:  # false with cross-attention
        # Otherwise the stock config classes fail when they validate hidden_size.
        config.allow_global_per_layer_attribute_access = True
        config.per_layer_config = _per_layer(config)
    try:
        yield
    finally:
        config.per_layer_config = None
        vars(config).pop("allow_global_per_layer_attribute_access", None)
        del config.auto_map


def _per_layer(config: Any) -> dict[int, dict[str, Any]]:
    """The numbers of heads, in transformers' format for layers of different sizes."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None)
    per_layer = {}
    for layer, keep in enumerate(config.kept_heads):
        groups = {head * kv_heads // heads for head in keep} if kv_heads else ()
        sizes = {"num_attention_heads": len(keep)}
        sizes |= {"num_key_value_heads": len(groups)} if kv_heads else {}
        per_layer[layer] = sizes if keep else {"skip": ["attention"]}
    counts = getattr(config, "kept_channels", None) or ()
    if hasattr(config, "intermediate_size") and len(counts) == len(per_layer):
        for layer, channels in enumerate(counts):
            per_layer[layer]["intermediate_size"] = channels
    return per_layer


@_cached
def _auto_classes(config: Any) -> dict[str, str]:
    """The stock class that each auto class builds from a config of this type."""
    found = {}
    for auto in _auto_names():
        mapping = getattr(transformers, auto)._model_mapping
        # The decoder of an encoder-decoder alone has fewer layers than kept_heads lists.
        if config in mapping and not (config.is_encoder_decoder and auto == "AutoModelForCausalLM"):
            stock = mapping[config]
            found[auto] = (stock[0] if isinstance(stock, tuple) else stock).__name__
    return found


@functools.cache
def _auto_names() -> tuple[str, ...]:
    """The names of the auto classes; listing the contents of transformers takes half a second."""
    return tuple(name for name in dir(transformers) if name.startswith("AutoModel"))


def auto_class(model: Any) -> str:
    """Return the name of the auto class that loads a model's folder as the model's class.

    :param model: the model.
    """
    found = _auto_classes(type(model.config))
    names = [auto for auto, stock in found.items() if stock == type(model).__name__]
    # Several may: BART's class is also the one for masked language models. The one for pre-training
    # is the least specific.
    return min(
        names,
        key=lambda auto: ("PreTraining" in auto, "MaskedLM" in auto, auto),
        default="AutoModel",
    )


def _code(config: Any) -> str:
    """The source code saved with the weights: the slicing code, then the model's classes."""
    modules = (Path(__file__).with_name(f"{name}.py").read_text("utf-8") for name in COPIED)
    source = "\n\n".join([_HEAD, *(_OWN_IMPORT.sub("", module) for module in modules)])
    names = sorted(set(_auto_classes(type(config)).values()))
    classes = "\n".join(f"{name} = pruned_class(transformers.{name}, FAMILY)" for name in names)
    family = FAMILIES[config.model_type]
    settings = "".join(
        f"    {field.name}={value!r},\n"
        for field in fields(family)
        if (value := getattr(family, field.name)) != field.default
    )
    return f"{source}\n\nimport transformers\n\nFAMILY = Family(\n{settings})\n{classes}\n"
