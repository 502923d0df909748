"""Remove attention heads from a model's weights, in one of three layouts."""

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
from sos_deap.models.genes import HeadMap, head_map
from sos_deap.models.saving import pruned_type
from sos_deap.models.slicing import attention_layers, head_slices, set_sizes, smaller_modules

Kept = list[list[int]]  # for each attention layer the indices of the query heads that it keeps

#: How removed heads are represented: sliced out of the weights, with any number of heads left per
#: layer; sliced out, with equally many left in every layer, so that the stock class can load the
#: model; or kept in place with zero weights.
LAYOUTS = ("sliced", "uniform", "zeroed")

#: Attributes of configs that hold numbers of heads.
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
    """Return a copy of a model without the heads that a chromosome removes.

    - ``"sliced"``: the query, key, value and output projections lose the rows and columns of the
      removed heads; a key/value head is removed with the last of its query heads. The indices of
      the kept heads are written into the config, and ``save_pretrained(folder)`` also saves the
      code that transformers needs to load the model.
    - ``"uniform"``: the same, for a chromosome that keeps equally many heads in each layer; the
      result has the stock class and a stock config.
    - ``"zeroed"``: all sizes stay, and the removed heads' weights in the output projection are 0.

    :param model: the model; it is not changed and shares no memory with the copy.
    :param chromosome: one gene per head or group, in layer order: 1 to keep it, 0 to remove it.
    :param heads: the model's :func:`~sos_deap.head_map`; default: one gene per query head.
    :param layout: one of :data:`~sos_deap.models.prune.LAYOUTS`.
    :returns: the pruned model.
    :raises InputError: for a chromosome or a layout that does not fit the model.
    """
    mapping = heads or head_map(model)
    kept = mapping.kept_heads(chromosome)
    check_layout(model, mapping, layout)
    if layout == "zeroed":
        return _zeroed(model, mapping, kept)
    uniform = _uniform_config(model, mapping, kept) if layout == "uniform" else None
    # deepcopy takes what is in its memo as already copied: the full-size projections are never
    # copied, so the peak memory is that of the model and its pruned copy.
    smaller = smaller_modules(model, mapping.family, mapping.layers, kept)
    memo: dict[int, Any] = {id(model.get_submodule(path)): new for path, new in smaller.items()}
    pruned = copy.deepcopy(model, memo)
    set_sizes(pruned, mapping.family, mapping.layers, kept)
    if uniform is not None:
        vars(pruned.config).update(vars(uniform))  # in place: the layers share it
    else:
        pruned.config.kept_heads = kept
        pruned.__class__ = pruned_type(type(model))
    return pruned


def check_layout(model: PreTrainedModel, head_map: HeadMap, layout: str) -> None:
    """Check that a model can be pruned in a layout by at least one chromosome.

    :param model: the model, not pruned.
    :param head_map: its head map.
    :param layout: one of :data:`LAYOUTS`.
    :raises InputError: if the layout is unknown or does not fit the model.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    for layer in head_map.layers:
        for part in head_slices(model, head_map.family, layer, range(layer.heads)):
            if part.projection:
                _check_projection(part.path, part.module)
    if layout == "zeroed":
        return
    if why := why_unsliceable(head_map.family, model.config):
        raise InputError(
            f"a {model.config.model_type} model cannot be sliced: {why}; use the layout zeroed"
        )
    if unnamed := _unnamed(model, head_map):
        raise InputError(
            f"a {model.config.model_type} model with {unnamed} cannot be sliced: its size depends "
            "on the number of heads, and the table of architectures does not name it; use the "
            "layout zeroed"
        )
    if layout == "uniform":
        uniform_counts(model, head_map)


def uniform_counts(model: PreTrainedModel, head_map: HeadMap) -> list[int]:
    """Return the numbers of genes that every layer can keep in the uniform layout.

    Not all numbers are possible: some stock configs require a hidden size that is a multiple of the
    number of heads.

    :param model: the model, not pruned.
    :param head_map: its head map.
    :returns: numbers of genes per layer, in rising order; the last one is that of the dense model.
    :raises InputError: if the model's stock config cannot have fewer heads.
    """
    grouped = any(1 < layer.kv_heads < layer.heads for layer in head_map.layers)
    if grouped and head_map.unit == "head":
        raise InputError(
            "the uniform layout of a model with grouped-query attention needs whole groups: "
            "use the unit group"
        )
    sizes = set(head_map.genes_per_layer)
    if len(sizes) > 1:
        raise InputError(
            "the uniform layout needs equally many heads in all layers, and this model's layers "
            "differ: use the layout sliced or zeroed"
        )
    size, counts, why = sizes.pop(), [], "each layer has one gene only"
    for count in range(1, size):
        genes = ([1] * count + [0] * (size - count)) * len(head_map.layers)
        try:
            config = _uniform_config(model, head_map, head_map.kept_heads(genes))
            counts.append(count)
        except InputError as error:
            why = str(error)
    if not counts:
        raise _not_uniform(model, why)
    _check_shapes(model, head_map, config)
    return [*counts, size]


def _unnamed(model: PreTrainedModel, head_map: HeadMap) -> str:
    """Find a tensor whose size depends on the number of heads and that the family does not name.

    :returns: the tensor's name; empty if there is none.
    """
    others = dict[str, torch.Size]()
    for layer in head_map.layers:
        parts = head_slices(model, head_map.family, layer, range(layer.heads))
        named = tuple(f"{part.path}." for part in parts)
        for name, tensor in _tensors(model.get_submodule(layer.attention)):
            path = f"{layer.attention}.{name}"
            if not path.startswith(named):
                others[path] = tensor.shape
    if not others:
        return ""
    wider = _with_twice_the_heads(model)
    return next((name for name, shape in others.items() if wider.get(name, shape) != shape), "")


def _with_twice_the_heads(model: PreTrainedModel) -> dict[str, torch.Size]:
    """The shapes of a model's tensors if it had twice as many heads of the same width.

    Empty if the model's class cannot be built in this size.
    """
    config: Any = copy.deepcopy(model.config)
    for name in ("hidden_size", *_HEAD_COUNTS):
        if isinstance(size := getattr(model.config, name, None), int):
            setattr(config, name, 2 * size)
    kind: Any = type(model)
    try:
        with torch.device("meta"):
            built = kind(config)
    except Exception:  # model classes raise errors of many types
        return {}
    return {name: tensor.shape for name, tensor in _tensors(built)}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


def _check_projection(path: str, projection: Any) -> None:
    if not isinstance(projection, nn.Linear | Conv1D) or not projection.weight.is_floating_point():
        raise InputError(
            f"{path} is a {type(projection).__name__} of {projection.weight.dtype}: pruning needs "
            "plain floating-point weights; load the model without quantisation"
        )


def _zeroed(model: PreTrainedModel, head_map: HeadMap, kept: Kept) -> PreTrainedModel:
    pruned = copy.deepcopy(model)
    for layer, keep in zip(head_map.layers, kept, strict=True):
        output: Any = pruned.get_submodule(layer.output)
        # Views of shape (heads, head_dim, outputs), so that the assignment changes the weights.
        weight = output.weight if isinstance(output, Conv1D) else output.weight.T
        by_head = weight.detach().unflatten(0, (layer.heads, layer.head_dim))
        by_head[sorted(set(range(layer.heads)) - set(keep))] = 0
    return pruned


def _uniform_config(model: PreTrainedModel, head_map: HeadMap, kept: Kept) -> Any:
    """A copy of the model's config with the number of heads that every layer keeps.

    :raises InputError: if the numbers of heads differ between layers, or if the config class does
        not accept them.
    """
    sizes = {
        (len(keep), *set(layer.kv_counts(keep).values()), len(layer.kv_counts(keep)))
        for layer, keep in zip(head_map.layers, kept, strict=True)
    }
    size = min(sizes)
    if len(sizes) > 1 or len(size) != 3 or size[0] == 0:  # (heads, heads per group, groups)
        raise InputError(
            "the uniform layout needs equally many heads, at least one, in every layer and in "
            f"every group: the layers keep {', '.join(str(len(keep)) for keep in kept)}"
        )
    config = copy.deepcopy(model.config)
    try:
        config.num_attention_heads, config.head_dim = size[0], head_map.layers[0].head_dim
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = size[2]
        config.validate()
    except Exception as error:  # config classes raise errors of many types
        why = first_line(error.__cause__ or error).rstrip(".")
        raise InputError(f"{why}: use another number of heads or another layout") from error
    return config


def _check_shapes(model: PreTrainedModel, head_map: HeadMap, config: Any) -> None:
    """Raise :class:`InputError` if the stock class computes another head width from the config."""
    try:
        with torch.device("meta"):
            built = list(attention_layers(type(model)(config), head_map.family))
    except Exception as error:  # model classes raise errors of many types
        raise _not_uniform(model, first_line(error)) from error
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for layer, before in zip(built, head_map.layers, strict=True):
        shape = (layer.heads, layer.kv_heads, layer.head_dim)
        if shape != (config.num_attention_heads, groups, before.head_dim):
            raise _not_uniform(
                model, "the model class computes the width of a head from their number"
            )


def _not_uniform(model: PreTrainedModel, why: str) -> InputError:
    return InputError(
        f"the stock {model.config.model_type} config cannot have fewer heads ({why}): "
        "use the layout sliced or zeroed"
    )
