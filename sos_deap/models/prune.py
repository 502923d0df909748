"""Cut the removed heads out of the weights, and read such a model back."""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from sos_deap.errors import InputError, first_line
from sos_deap.models.heads import AttentionLayer, HeadMap, head_map, stock_head_map

Kept = list[list[int]]  # the numbers of the query heads that each layer keeps


def prune(model: PreTrainedModel, chromosome: Sequence[int]) -> PreTrainedModel:
    """Return a smaller copy of a model, without the heads a chromosome removes.

    The query, key, value and output projections lose the rows and columns of the removed heads; a
    key/value head goes when the last of its query heads goes. The kept heads are written into the
    config, so that ``save_pretrained(folder)`` and :func:`load` work.

    :param model: the model; it is left as it was, and the copy shares no memory with it.
    :param chromosome: one 0/1 gene per head, in layer order.
    :returns: the pruned model, of the same class.
    :raises InputError: for a chromosome that does not fit the model.
    """
    heads = head_map(model)
    kept = heads.kept_heads(chromosome)
    # deepcopy takes what stands in its memo as already copied: the full-size projections are
    # never copied, so the peak memory is that of the model and its pruned copy.
    smaller = _smaller_modules(model, heads, kept)
    memo: dict[int, Any] = {id(model.get_submodule(path)): new for path, new in smaller.items()}
    pruned = copy.deepcopy(model, memo)
    _finish(pruned, heads, kept)
    return pruned


def load(folder: str | Path, *, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    """Read a pruned model from a folder written by its ``save_pretrained``.

    :param folder: a folder with ``config.json`` and safetensors weights; no code in it is run.
    :param dtype: as for ``from_pretrained``; ``"auto"`` is the one the weights are stored in.
    :returns: the model, in evaluation mode, of the class that was saved.
    :raises InputError: if the folder is missing, damaged, or was not written by ``sos_deap``.
    """
    stock, kept = _read_config(Path(folder))

    class Pruned(stock):  # type: ignore[valid-type, misc]
        """The stock class, sliced before ``from_pretrained`` looks for its weights."""

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            heads = stock_head_map(self)
            _check_kept(kept, heads)
            for path, module in _smaller_modules(self, heads, kept).items():
                self.set_submodule(path, module)
            _finish(self, heads, kept)

    try:
        loaded, info = Pruned.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except InputError:
        raise
    except Exception as error:  # a damaged folder fails in many ways, deep inside three libraries
        raise InputError(f"cannot load {folder}: {first_line(error)}") from error
    if wrong := {what: sorted(map(str, names)) for what, names in info.items() if names}:
        what, names = next(iter(wrong.items()))
        raise InputError(
            f"the weights in {folder} do not fit its config.json: {len(names)} "
            f"{what.replace('_', ' ')}, {names[0]} among them; save the model again"
        )
    loaded.__class__ = stock  # the subclass has done its work; save_pretrained names the class
    model: PreTrainedModel = loaded
    return model


class NoHeads(nn.Module):
    """The attention of a layer that lost all its heads: nothing, or its output projection's bias.

    :param width: width of the result: the hidden size, or 0 where the output projection lies
        outside the attention module and still follows.
    :param bias: the output projection's bias, where that projection was inside.
    :param layer: the layer's place in the key/value cache; ``None`` where there is none.
    """

    def __init__(self, width: int, bias: Tensor | None, layer: int | None) -> None:
        super().__init__()
        self.width, self.layer_idx = width, layer
        self.output_bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(
        self, hidden_states: Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Return ``(output, no attention weights)``, as the stock attention does."""
        if past_key_values is not None and self.layer_idx is not None:
            # The cache counts its tokens by what a layer stores, so store one number per token.
            cache = getattr(past_key_values, "self_attention_cache", past_key_values)
            token = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            cache.update(token, token, self.layer_idx)
        output = hidden_states.new_zeros(*hidden_states.shape[:-1], self.width)
        return (output if self.output_bias is None else output + self.output_bias), None


def _smaller_modules(model: nn.Module, heads: HeadMap, kept: Kept) -> dict[str, nn.Module]:
    """New modules, by path, for all that gets smaller; the model itself is not touched."""
    family, new = heads.family, dict[str, nn.Module]()
    for layer, keep in zip(heads.layers, kept, strict=True):
        if len(keep) == layer.heads:
            continue
        attention = model.get_submodule(layer.attention)
        output: Any = model.get_submodule(layer.output)
        query = _rows(keep, layer.head_dim)
        if not keep:
            width, bias = (_outputs(output), output.bias) if family.output_inside else (0, None)
            new[layer.attention] = NoHeads(width, bias, getattr(attention, "layer_idx", None))
        else:
            key_value = _rows(_kv_counts(layer, keep), layer.head_dim)
            for part, rows in _projection_rows(heads, layer, query, key_value).items():
                new[f"{layer.attention}.{part}"] = _sliced(attention.get_submodule(part), 0, rows)
        if keep or not family.output_inside:
            new[layer.output] = _sliced(output, 1, query)
    return new


def _projection_rows(
    heads: HeadMap, layer: AttentionLayer, query: list[int], key_value: list[int]
) -> dict[str, list[int]]:
    """The output rows to keep of each projection; a fused one has its parts one after another."""
    family = heads.family
    if not family.fused:
        return {family.query: query, family.key: key_value, family.value: key_value}
    key_start = layer.heads * layer.head_dim
    value_start = key_start + layer.kv_heads * layer.head_dim
    keys, values = ([start + row for row in key_value] for start in (key_start, value_start))
    return {family.query: query + keys + values}


def _finish(model: nn.Module, heads: HeadMap, kept: Kept) -> None:
    """Set what the attention code of the sliced layers reads besides the weights."""
    ragged = False
    for layer, keep in zip(heads.layers, kept, strict=True):
        if not keep or len(keep) == layer.heads:
            continue
        attention: Any = model.get_submodule(layer.attention)
        if heads.family.split_size:
            setattr(attention, heads.family.split_size, len(keep) * layer.head_dim)
        if layer.kv_heads < layer.heads:
            counts = list(_kv_counts(layer, keep).values())
            even = len(set(counts)) == 1
            attention.num_key_value_groups = counts[0] if even else 1
            attention.query_heads_per_kv_head = None if even else counts
            ragged |= not even
    model.config.kept_heads = kept  # type: ignore[union-attr]
    if ragged:
        _use_ragged_attention(model)


def _use_ragged_attention(model: Any) -> None:
    """Let the model's own attention function see each key/value head once per query head."""
    inner = model.config._attn_implementation
    name = f"ragged_{inner}"
    AttentionInterface.register(name, functools.partial(_ragged_attention, inner))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[inner])
    model.set_attn_implementation(name)


def _ragged_attention(
    inner: str, module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Attention with unequal numbers of query heads per key/value head.

    Shapes are (batch, heads, tokens, head_dim), as transformers' attention functions have them. The
    counts are plain integers: nothing to load, to move between devices or to initialise.
    """
    if counts := getattr(module, "query_heads_per_kv_head", None):
        key, value = (_repeat_heads(states, counts) for states in (key, value))
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(inner, eager)
    return attend(module, query, key, value, *args, **kwargs)


def _repeat_heads(states: Tensor, counts: list[int]) -> Tensor:
    parts = [states[:, i : i + 1].expand(-1, n, -1, -1) for i, n in enumerate(counts)]
    return torch.cat(parts, dim=1)


def _kv_counts(layer: AttentionLayer, keep: Iterable[int]) -> dict[int, int]:
    """The key/value heads still in use, in order, each with its number of query heads."""
    return dict(sorted(Counter(head * layer.kv_heads // layer.heads for head in keep).items()))


def _rows(heads: Iterable[int], head_dim: int) -> list[int]:
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def _outputs(module: Any) -> int:
    size: int = module.nf if isinstance(module, Conv1D) else module.out_features
    return size


def _sliced(module: nn.Module, axis: int, rows: list[int]) -> nn.Module:
    """A copy of a projection with some of its outputs (axis 0) or inputs (axis 1).

    :raises InputError: for a module that is no plain projection, such as a quantised one.
    """
    weight: Any = module.weight
    if not isinstance(module, nn.Linear | Conv1D) or not weight.is_floating_point():
        raise InputError(
            f"a projection is a {type(module).__name__} of {weight.dtype}: pruning needs the "
            "plain floating-point weights; load the model without quantisation"
        )
    index = torch.tensor(rows, dtype=torch.long, device=weight.device)
    stored_axis = 1 - axis if isinstance(module, Conv1D) else axis  # Conv1D stores (in, out)
    memo: dict[int, Any] = {id(weight): _selected(weight, stored_axis, index)}
    if axis == 0 and module.bias is not None:
        memo[id(module.bias)] = _selected(module.bias, 0, index)
    new: Any = copy.deepcopy(module, memo)
    names = ("nf", "nx") if isinstance(module, Conv1D) else ("out_features", "in_features")
    setattr(new, names[axis], len(rows))
    sliced: nn.Module = new
    return sliced


def _selected(parameter: Tensor, axis: int, index: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(axis, index), parameter.requires_grad)


def _read_config(folder: Path) -> tuple[type[PreTrainedModel], Kept]:
    """The stock model class and the kept heads that a folder's config.json names."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no config.json: give a folder written by sos_deap")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kept, architecture = config.get("kept_heads"), (config.get("architectures") or [None])[0]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}): save it again") from error
    if kept is None:
        raise InputError(
            f"{path} names no kept_heads, so sos_deap did not write it: "
            "load it with transformers' from_pretrained"
        )
    stock = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise InputError(f"{path} names the model class {architecture!r}, unknown to transformers")
    return stock, kept


def _check_kept(kept: Any, heads: HeadMap) -> None:
    """Raise :class:`InputError` unless ``kept`` lists rising head numbers for every layer."""

    def fits(keep: Any, layer: AttentionLayer) -> bool:
        plain = isinstance(keep, list) and all(type(head) is int for head in keep)
        return plain and keep == sorted(set(keep) & set(range(layer.heads)))

    if (
        not isinstance(kept, list)
        or len(kept) != len(heads.layers)
        or not all(map(fits, kept, heads.layers))
    ):
        raise InputError(
            "kept_heads in config.json must list, for each of the model's "
            f"{len(heads.layers)} layers, the numbers of its kept heads in rising order"
        )
