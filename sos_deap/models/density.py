"""What share of a model a chromosome removes: of its heads, as in the paper, or its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedModel

from sos_deap.errors import InputError, unknown
from sos_deap.models.families import why_unsliceable
from sos_deap.models.heads import HeadMap
from sos_deap.models.slicing import AttentionLayer, features, rows_to_keep

Sparsity = Callable[[Sequence[int]], float]

#: S, the largest share removed, where the user gives none, by what it is a share of. The sizes in
#: the paper's Table II say that LLaMA-2 7B lost 317 of 1,024 heads, which are 9.5 % of the bytes.
MAX_SPARSITY = {"heads": 0.31, "parameters": 0.095}


def _heads(model: PreTrainedModel, heads: HeadMap) -> Sparsity:
    """The share of genes that are 0."""
    return lambda genes: (len(genes) - sum(genes)) / len(genes) if len(genes) else 0.0


def _parameters(model: PreTrainedModel, heads: HeadMap) -> Sparsity:
    """The share of all the model's parameters that slicing removes.

    A key/value head goes with the last of its query heads, so what a gene is worth depends on the
    others of its layer. It is also the share of bytes, since a model is stored in one dtype.
    """
    if why := why_unsliceable(heads.family, model.config):
        raise InputError(f"a {model.config.model_type} model has heads of no parameters: {why}")
    total = sum(parameter.numel() for parameter in model.parameters())
    known: list[dict[tuple[int, int], int]] = [{} for _ in heads.layers]

    def removed(number: int, layer: AttentionLayer, keep: Sequence[int]) -> int:
        size = len(keep), len(layer.kv_counts(keep))  # all that counts: heads are of one width
        if size not in known[number]:
            known[number][size] = _removed(model, heads, layer, keep)
        return known[number][size]

    def share(genes: Sequence[int]) -> float:
        kept = heads.kept_heads(genes)
        gone = (removed(i, *pair) for i, pair in enumerate(zip(heads.layers, kept, strict=True)))
        return sum(gone) / total

    return share


def _removed(model: nn.Module, heads: HeadMap, layer: AttentionLayer, keep: Sequence[int]) -> int:
    """The parameters that slicing a layer to some heads removes."""
    if len(keep) == layer.heads:
        return 0
    attention, output = (model.get_submodule(p) for p in (layer.attention, layer.output))
    outputs, inputs = features(output)
    removed = outputs * (inputs - len(keep) * layer.head_dim)
    if not keep:  # the attention module goes as a whole, and of the output its bias stays
        inside = heads.family.output_inside
        own = sum(parameter.numel() for parameter in attention.parameters())
        return own - sum(p.numel() for p in output.parameters()) * inside + removed
    for part, rows in rows_to_keep(heads.family, layer, keep).items():
        if hasattr(attention, part):
            module = attention.get_submodule(part)
            own, outputs = sum(p.numel() for p in module.parameters()), features(module)[0]
            removed += own // outputs * (outputs - len(rows))
    return removed


#: What sparsity can be counted in.
SPARSITIES: dict[str, Callable[[PreTrainedModel, HeadMap], Sparsity]] = {
    "heads": _heads,
    "parameters": _parameters,
}


def sparsity_measure(model: PreTrainedModel, heads: HeadMap, sparsity_of: str) -> Sparsity:
    """From genes to the share that they remove.

    :param sparsity_of: a key of :data:`SPARSITIES`.
    :raises InputError: for another name, and for parameters of a model that cannot be sliced.
    """
    if sparsity_of not in SPARSITIES:
        raise unknown("sparsity_of", sparsity_of, SPARSITIES)
    return SPARSITIES[sparsity_of](model, heads)
