"""Genes to attention heads: which gene is which head, and sub-models as masks on one model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sos_deap.errors import InputError, unknown
from sos_deap.models.families import FAMILIES, Family


@dataclass(frozen=True)
class AttentionLayer:
    """One layer's attention.

    :param attention: the attention module's path in the model.
    :param output: the output projection's path in the model.
    :param heads: number of query heads; each is a gene.
    :param kv_heads: number of key/value heads; smaller than ``heads`` with grouped-query attention.
    :param head_dim: width of a head.
    """

    attention: str
    output: str
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class HeadMap:
    """All the heads of a model in layer order: gene ``i`` of a chromosome is head ``i``."""

    family: Family
    layers: tuple[AttentionLayer, ...]

    def __len__(self) -> int:
        return sum(self.heads_per_layer)

    @property
    def heads_per_layer(self) -> tuple[int, ...]:
        """Query heads in each layer."""
        return tuple(layer.heads for layer in self.layers)

    def checked(self, chromosome: Sequence[int]) -> Sequence[int]:
        """Return a chromosome of one 0/1 gene per head as it is.

        :raises InputError: if its length is wrong or a gene is neither 0 nor 1.
        """
        if len(chromosome) != len(self):
            raise InputError(
                f"the chromosome has {len(chromosome)} genes, the model {len(self)} heads "
                f"({len(self.layers)} layers): give one gene per head"
            )
        if stray := [gene for gene in chromosome if gene not in (0, 1)]:
            raise InputError(f"a gene is {stray[0]!r}: genes are 1 (head kept) or 0 (head removed)")
        return chromosome

    def genes_per_layer(self, chromosome: Sequence[int]) -> list[list[int]]:
        """Cut a chromosome into its layers; raises as :meth:`checked` does."""
        genes = iter(self.checked(chromosome))
        return [[int(next(genes)) for _ in range(heads)] for heads in self.heads_per_layer]

    def kept_heads(self, chromosome: Sequence[int]) -> list[list[int]]:
        """The numbers of the heads each layer keeps."""
        per_layer = self.genes_per_layer(chromosome)
        return [[head for head, gene in enumerate(genes) if gene] for genes in per_layer]


def head_map(model: nn.Module) -> HeadMap:
    """Find the attention heads of a transformers model.

    :param model: any model class of a known architecture, with or without a task head.
    :returns: the map; ``len()`` of it is the number of genes.
    :raises InputError: for an architecture that has no row in :data:`FAMILIES`, and for a model
        whose heads were already removed.
    """
    if getattr(getattr(model, "config", None), "kept_heads", None) is not None:
        raise InputError(
            "the model is already pruned: prune the original once more, with all the heads to go"
        )
    return stock_head_map(model)


def stock_head_map(model: nn.Module) -> HeadMap:
    """The head map of the stock architecture, whatever was removed from this instance of it."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise unknown("architecture", kind, FAMILIES)
    family = FAMILIES[kind]
    layers = tuple(_attention_layers(model, family))
    if not layers:
        raise InputError(
            f"no attention layer of the {kind} architecture in this {type(model).__name__}: "
            f"expected modules named ...{family.block}.{family.attention}"
        )
    return HeadMap(family, layers)


def _attention_layers(model: nn.Module, family: Family) -> Iterator[AttentionLayer]:
    block = re.escape(family.block).replace(r"\*", r"\d+")
    pattern = re.compile(rf"((?:.*\.)?{block})\.{re.escape(family.attention)}")
    for name, attention in model.named_modules():
        if match := pattern.fullmatch(name):
            config: Any = attention.config
            heads = config.num_attention_heads
            yield AttentionLayer(
                attention=name,
                output=f"{match[1]}.{family.output}",
                heads=heads,
                kv_heads=getattr(config, "num_key_value_heads", None) or heads,
                head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            )


@contextmanager
def masked(
    model: nn.Module, chromosomes: Sequence[Sequence[int]], heads: HeadMap | None = None
) -> Iterator[nn.Module]:
    """Make one model compute many sub-models at once.

    Inside the context a batch of ``len(chromosomes) * B`` rows is read as that many consecutive
    blocks of ``B`` rows, one sub-model each. A removed head's output is multiplied by zero where it
    enters the output projection, which is the same as not having the head.

    :param model: the model; left exactly as found, after an exception too.
    :param chromosomes: one chromosome per sub-model.
    :param heads: the model's :func:`head_map`, where the caller has it already.
    :raises InputError: for a chromosome that does not fit the model, or inside the context for a
        batch that does not divide into as many blocks.
    """
    heads = heads or head_map(model)
    if not chromosomes:
        raise InputError("masked() was given no chromosome: give at least one")
    per_chromosome = [heads.genes_per_layer(chromosome) for chromosome in chromosomes]
    with ExitStack() as stack:
        for layer, genes in zip(heads.layers, zip(*per_chromosome, strict=True), strict=True):
            if all(map(all, genes)):
                continue  # every sub-model keeps every head of this layer
            hook = _mask_hook(torch.tensor(genes).repeat_interleave(layer.head_dim, dim=1))
            handle = model.get_submodule(layer.output).register_forward_pre_hook(hook)
            stack.callback(handle.remove)
        yield model


def _mask_hook(mask: Tensor) -> Any:
    """A hook that scales an output projection's input; `mask` is (sub-models, heads * head_dim)."""
    mask = mask[:, None, :]

    def scale(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal mask
        context, *rest = inputs  # (sub-models * rows, tokens, heads * head_dim)
        mask = mask.to(context)  # once: afterwards device and dtype are right
        if len(context) % len(mask):
            raise InputError(
                f"the batch has {len(context)} rows for {len(mask)} sub-models: "
                "give the same number of rows for each"
            )
        blocks = context.reshape(len(mask), -1, context.shape[-1])
        return ((blocks * mask).view_as(context), *rest)

    return scale
