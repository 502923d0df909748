"""Cut the removed heads out of a model's weights, in one of three layouts."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.models.families import why_unsliceable
from sos_deap.models.heads import HeadMap, head_map
from sos_deap.models.saving import pruned_type
from sos_deap.models.slicing import Family, attention_layers, finish, smaller_modules

Kept = list[list[int]]  # the numbers of the query heads that each attention module keeps

#: What can become of the removed heads: cut out, each layer as many as it lost; cut out, with as
#: many left in every layer, so that the stock class fits; or left in place with zeros for weights.
LAYOUTS = ("sliced", "uniform", "zeroed")

#: Where configs have numbers of heads.
_HEAD_COUNTS = (
    *("num_attention_heads", "num_key_value_heads"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)


def prune(
    model: PreTrainedModel,
    chromosome: Sequence[int],
    heads: HeadMap | None = None,
    layout: str = "sliced",
) -> PreTrainedModel:
    """Return a copy of a model without the heads a chromosome removes.

    In the layout ``"sliced"`` the query, key, value and output projections lose the rows and
    columns of the removed heads; a key/value head goes when the last of its query heads goes. The
    kept heads are written into the config, and ``save_pretrained(folder)`` puts the code that
    transformers needs to load such a model beside the weights. ``"uniform"`` does the same to a
    chromosome with equally many heads in each layer, and gives a model of the stock class with a
    stock config. ``"zeroed"`` keeps the size and zeroes the removed heads' weights in the output
    projection.

    :param model: the model; it is left as it was, and the copy shares no memory with it.
    :param chromosome: one 0/1 gene per head (or group), in layer order.
    :param heads: the model's :func:`head_map`, where its unit is not ``"head"``.
    :param layout: one of :data:`LAYOUTS`.
    :returns: the pruned model.
    :raises InputError: for a chromosome or a layout that does not fit the model.
    """
    heads = heads or head_map(model)
    kept = heads.kept_heads(chromosome)
    check_layout(model, heads, layout)
    if layout == "zeroed":
        return _zeroed(model, heads, kept)
    uniform = _uniform_config(model, heads, kept) if layout == "uniform" else None
    # deepcopy takes what stands in its memo as already copied: the full-size projections are
    # never copied, so the peak memory is that of the model and its pruned copy.
    smaller = smaller_modules(model, heads.family, heads.layers, kept)
    memo: dict[int, Any] = {id(model.get_submodule(path)): new for path, new in smaller.items()}
    pruned = copy.deepcopy(model, memo)
    finish(pruned, heads.family, heads.layers, kept)
    if uniform is not None:
        vars(pruned.config).update(vars(uniform))  # in place: the layers share it
    else:
        pruned.config.kept_heads = kept
        pruned.__class__ = pruned_type(type(model))
    return pruned


def check_layout(model: PreTrainedModel, heads: HeadMap, layout: str) -> None:
    """Raise :class:`InputError` if no chromosome of this model can be pruned in this layout."""
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    for layer in heads.layers:
        for path in [layer.output, *_projections(model, layer.attention, heads.family)]:
            _check_projection(path, model.get_submodule(path))
    if layout == "zeroed":
        return
    if why := why_unsliceable(heads.family, model.config):
        raise InputError(
            f"a {model.config.model_type} model cannot be sliced: {why}; use the layout zeroed"
        )
    if unnamed := _unnamed(model, heads):
        raise InputError(
            f"a {model.config.model_type} model with {unnamed} cannot be sliced: its size depends "
            "on the number of heads, and the table of architectures does not name it; use the "
            "layout zeroed"
        )
    if layout == "uniform":
        uniform_counts(model, heads)


def uniform_counts(model: PreTrainedModel, heads: HeadMap) -> list[int]:
    """How many genes each layer can keep in the uniform layout, the fewest first.

    Some stock configs want the hidden size to be a multiple of the number of heads.

    :raises InputError: if the stock config of the model cannot have fewer heads at all.
    """
    if any(1 < layer.kv_heads < layer.heads for layer in heads.layers) and heads.unit == "head":
        raise InputError(
            "the uniform layout of a model with grouped-query attention needs whole groups: "
            "use the unit group"
        )
    sizes = set(heads.genes_per_layer)
    if len(sizes) > 1:
        raise InputError("the uniform layout needs layers of one size, and this model's differ")
    size, counts, why = sizes.pop(), [], "there is one a layer"
    for count in range(1, size):
        genes = ([1] * count + [0] * (size - count)) * len(heads.layers)
        try:
            config = _uniform_config(model, heads, heads.kept_heads(genes))
            counts.append(count)
        except InputError as error:
            why = str(error)
    if not counts:
        raise _not_uniform(model, why)
    _check_shapes(model, heads, config)
    return [*counts, size]


def _unnamed(model: PreTrainedModel, heads: HeadMap) -> str:
    """A tensor of an attention module whose size depends on its heads and that no row names.

    :returns: its name, or nothing if there is none.
    """
    family = heads.family
    named = [family.query, family.key, family.value, family.output, *family.more]
    named += [part for part, _ in family.per_head]
    others = dict[str, torch.Size]()
    for layer in heads.layers:
        attention = model.get_submodule(layer.attention)
        for name, tensor in _tensors(attention):
            if not name.startswith(tuple(f"{part}." for part in named)):
                others[f"{layer.attention}.{name}"] = tensor.shape
    if not others:
        return ""
    wider = _with_twice_the_heads(model)
    return next((name for name, shape in others.items() if wider.get(name, shape) != shape), "")


def _with_twice_the_heads(model: PreTrainedModel) -> dict[str, torch.Size]:
    """The shapes of the tensors in such a model, with heads of the same width.

    Nothing where its class cannot be built so.
    """
    config: Any = copy.deepcopy(model.config)
    for name in ("hidden_size", *_HEAD_COUNTS):
        if isinstance(size := getattr(model.config, name, None), int):
            setattr(config, name, 2 * size)
    kind: Any = type(model)
    try:
        with torch.device("meta"):
            built = kind(config)
    except Exception:  # each model class has its own
        return {}
    return {name: tensor.shape for name, tensor in _tensors(built)}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


def _projections(model: nn.Module, attention: str, family: Family) -> list[str]:
    module = model.get_submodule(attention)
    parts = (family.query, family.key, family.value, *family.more)
    return [f"{attention}.{part}" for part in parts if part and hasattr(module, part)]


def _check_projection(path: str, projection: Any) -> None:
    if not isinstance(projection, nn.Linear | Conv1D) or not projection.weight.is_floating_point():
        raise InputError(
            f"{path} is a {type(projection).__name__} of {projection.weight.dtype}: pruning needs "
            "plain floating-point weights; load the model without quantisation"
        )


def _zeroed(model: PreTrainedModel, heads: HeadMap, kept: Kept) -> PreTrainedModel:
    pruned = copy.deepcopy(model)
    for layer, keep in zip(heads.layers, kept, strict=True):
        output: Any = pruned.get_submodule(layer.output)
        # As (heads, head_dim, outputs), whichever way the projection stores it; views all along.
        weight = output.weight if isinstance(output, Conv1D) else output.weight.T
        by_head = weight.detach().unflatten(0, (layer.heads, layer.head_dim))
        by_head[sorted(set(range(layer.heads)) - set(keep))] = 0
    return pruned


def _uniform_config(model: PreTrainedModel, heads: HeadMap, kept: Kept) -> Any:
    """A stock config for as many heads as every layer keeps.

    :raises InputError: if layers differ, or if the stock class takes another shape with it.
    """
    left = {
        (len(keep), *set(layer.kv_counts(keep).values()), len(layer.kv_counts(keep)))
        for layer, keep in zip(heads.layers, kept, strict=True)
    }
    size = min(left)
    if len(left) > 1 or len(size) != 3 or size[0] == 0:  # (heads, heads per group, groups)
        raise InputError(
            "the uniform layout needs equally many heads, at least one, in every layer, and "
            f"in every group; the layers keep {', '.join(str(len(keep)) for keep in kept)}"
        )
    config = copy.deepcopy(model.config)
    try:
        config.num_attention_heads, config.head_dim = size[0], heads.layers[0].head_dim
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = size[2]
        config.validate()
    except Exception as error:  # each config class has its own
        why = first_line(error.__cause__ or error).rstrip(".")
        raise InputError(f"{why}: use another number of heads or another layout") from error
    return config


def _check_shapes(model: PreTrainedModel, heads: HeadMap, config: Any) -> None:
    """Raise :class:`InputError` unless the stock class gives heads of the right width."""
    try:
        with torch.device("meta"):
            built = list(attention_layers(type(model)(config), heads.family))
    except Exception as error:  # each model class has its own
        raise _not_uniform(model, first_line(error)) from error
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for layer, before in zip(built, heads.layers, strict=True):
        shape = (layer.heads, layer.kv_heads, layer.head_dim)
        if shape != (config.num_attention_heads, groups, before.head_dim):
            raise _not_uniform(model, "the width of a head follows from their number")


def _not_uniform(model: PreTrainedModel, why: str) -> InputError:
    return InputError(
        f"the stock {model.config.model_type} config cannot have fewer heads ({why}): "
        "use the layout sliced or zeroed"
    )
