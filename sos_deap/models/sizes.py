"""What sliced modules read besides their weights: numbers of heads and experts, and biases."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sos_deap.models.family import Family
from sos_deap.models.sites import ATTENTION, EXPERTS, Site


def set_sizes(
    model: Any,
    family: Family,
    sites: Sequence[Site],
    kept: Sequence[Sequence[int]],
) -> None:
    """Set the attributes that the code of sliced modules reads besides the weights.

    :param model: the sliced model.
    :param family: its architecture.
    :param sites: its sites, as they were before slicing.
    :param kept: for each of them the indices of the kept units, in rising order.
    """
    for site, keep in zip(sites, kept, strict=True):
        if site.kind == ATTENTION and 0 < len(keep) < site.units:
            set_attention_sizes(model, family, site, keep)
        if site.kind == EXPERTS and 0 < len(keep) < site.units:
            router: Any = model.get_submodule(site.router)
            experts: Any = model.get_submodule(site.consumer)
            router.num_experts = experts.num_experts = len(keep)
            router.top_k = min(router.top_k, len(keep))


def set_attention_sizes(model: Any, family: Family, site: Site, keep: Sequence[int]) -> None:
    """Set the attributes that the code of one sliced attention module reads besides the weights.

    :param model: the sliced model.
    :param family: its architecture.
    :param site: the attention site, as it was before slicing.
    :param keep: indices of its kept query heads, at least one, in rising order.
    """
    attention: Any = model.get_submodule(site.module)
    counts = list(site.group_counts(keep).values())
    ragged = len(set(counts)) > 1
    sizes = {"heads": len(keep), "kv_heads": len(counts), "width": len(keep) * site.width}
    if ragged and family.one_each:
        ragged, sizes["kv_heads"] = False, len(keep)
        for name, value in family.one_each:
            setattr(attention, name, value)
    own = dict[str, int]()
    for name, what in family.attributes:
        if name.startswith("config."):
            own[name[7:]] = sizes[what]
        else:
            setattr(attention, name, sizes[what])
    if site.groups < site.units:
        attention.num_key_value_groups = 1 if ragged else counts[0]
    if own or ragged or family.bias_by_head:
        shared = getattr(attention, "config", model.config)
        biases = {name: list(keep) for name in family.bias_by_head}
        attention.config = LayerConfig(shared, own, counts if ragged else None, biases)
    if family.by_head:
        # Copies, since narrowed() restores an attention module by restoring its attributes.
        for hooks in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            setattr(attention, hooks, copy.copy(getattr(attention, hooks)))
        names = {
            name: number
            for number, name in enumerate(inspect.signature(attention.forward).parameters)
            if name in family.by_head
        }
        select = SelectArguments(names, site.units, list(keep))
        attention.register_forward_pre_hook(select, with_kwargs=True)


def _of_heads(value: Tensor, heads: int, kept: Sequence[int]) -> Tensor:
    """Select heads of a tensor of shape (batch, heads, ...) or (batch * heads, ...)."""
    index = torch.tensor(kept, dtype=torch.long, device=value.device)
    if value.dim() == 4:
        return value if value.shape[1] == 1 else value.index_select(1, index)
    by_head: Tensor = value.unflatten(0, (-1, heads))
    return by_head.index_select(1, index).flatten(0, 1)


class SelectArguments:
    """A forward pre-hook that selects the kept heads of arguments with one value per head.

    :param names: the arguments by name, each with its number among all.
    :param heads: number of query heads of the dense model.
    :param kept: indices of the kept ones.
    """

    def __init__(self, names: dict[str, int], heads: int, kept: list[int]) -> None:
        self.names, self.heads, self.kept = names, heads, kept

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``forward`` with kept heads only."""
        given, named = list(args), dict(kwargs)
        for name, number in self.names.items():
            if number < len(given):
                given[number] = self._selected(given[number])
            elif name in named:
                named[name] = self._selected(named[name])
        return tuple(given), named

    def _selected(self, value: Any) -> Any:
        return _of_heads(value, self.heads, self.kept) if isinstance(value, Tensor) else value


class SelectOutputs:
    """A forward hook that selects some features of a module's output.

    :param kept: indices of the features.
    """

    def __init__(self, kept: list[int]) -> None:
        self.kept = kept

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the selected features of the output, (..., features)."""
        return output.index_select(-1, torch.tensor(self.kept, device=output.device))


class LayerConfig:
    """A layer's view of the model's config: some values are the layer's, all others are shared.

    :param config: the model's config.
    :param own: the layer's values by name.
    :param ragged: the number of query heads of each of the layer's key/value heads; ``None`` if
        all are equal.
    :param biases: arguments of the attention function with one value per head of the dense model,
        with the indices of the kept heads.
    """

    def __init__(
        self,
        config: Any,
        own: dict[str, Any],
        ragged: list[int] | None,
        biases: dict[str, list[int]],
    ) -> None:
        self.__dict__.update(own, shared=config, ragged=ragged, biases=biases)

    @property
    def _attn_implementation(self) -> str:
        """The model's current attention function, wrapped if what it gets has to be changed."""
        inner: str = self.shared._attn_implementation
        return inner if self.ragged is None and not self.biases else _wrapped(inner)

    def __getattr__(self, name: str) -> Any:
        if name == "shared":  # not yet set while the object is being copied
            raise AttributeError(name)
        return getattr(self.shared, name)


def _wrapped(inner: str) -> str:
    """Register ``inner`` on changed inputs as an attention function; return its name."""
    name = f"sliced_{inner}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, functools.partial(_sliced_attention, inner))
    return name


def _sliced_attention(
    inner: str, module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Compute attention of a layer that has lost heads.

    If the numbers of query heads per key/value head are unequal, key/value heads are repeated as
    often as ``module.config.ragged`` states. Biases with a value for each head of the dense model
    are reduced to the kept heads. All these numbers are integers, not buffers, so nothing has to be
    loaded, moved between devices or initialised.

    :param inner: name of the attention function that computes the result.
    :param module: the attention module.
    :param query: (batch, heads, tokens, head_dim).
    :param key: (batch, key/value heads, tokens, head_dim).
    :param value: (batch, key/value heads, tokens, head_dim).
    :returns: what ``inner`` returns.
    """
    config = module.config
    if config.ragged is not None:
        key, value = (_repeat_heads(states, config.ragged) for states in (key, value))
    for name, kept in config.biases.items():
        bias = kwargs.get(name)
        if bias is not None and bias.shape[1] not in (1, len(kept)):
            kwargs[name] = _of_heads(bias, 0, kept)
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(inner, eager)
    return attend(module, query, key, value, *args, **kwargs)


def _repeat_heads(states: Tensor, counts: list[int]) -> Tensor:
    parts = [states[:, i : i + 1].expand(-1, n, -1, -1) for i, n in enumerate(counts)]
    return torch.cat(parts, dim=1)
