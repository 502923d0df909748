"""What a row of the table of architectures states: names and layout of modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FeedForward:
    """Names of the feed-forward projections of one architecture.

    :param modules: paths in a layer of the modules whose ``forward`` computes the feed-forward; an
        empty path if the layer does so itself. A leading ``../`` refers to the parent, and ``*`` is
        the layer's number, for feed-forwards in another list than the layers.
    :param consumer: path in that module of the projection whose inputs are the channels.
    :param producers: paths in that module of the projections whose outputs are the channels, such
        as the gate and the value of a gated feed-forward. A model may lack some.
    :param fused: number of projections that each producer computes, one after the other: 2 where
        one projection computes the gate and the value.
    :param sizes: attributes of the stock config that set the number of channels; empty if the
        model's class computes it from other sizes.
    """

    modules: tuple[str, ...]
    consumer: str
    producers: tuple[str, ...]
    fused: int = 1
    sizes: tuple[str, ...] = ("intermediate_size",)


@dataclass(frozen=True)
class Experts:
    """Names in the mixture of experts of one architecture.

    The router has a ``weight`` with one row per expert, perhaps a ``bias``, and an attribute
    ``top_k``, the number of experts that each token is sent to; it returns logits, the weights of
    the chosen experts, and their indices. It may compute the weights from the logits in any way in
    which an expert whose logit is very low has the weight 0.

    :param module: path in a layer of the module whose ``forward`` computes the mixture.
    :param router: path in that module of the router.
    :param experts: path in that module of the module that computes the experts. Each of its
        parameters has one entry per expert along its first axis.
    :param sizes: attributes of the stock config that set the number of experts.
    """

    module: str = "mlp"
    router: str = "gate"
    experts: str = "experts"
    sizes: tuple[str, ...] = ("num_experts",)


@dataclass(frozen=True)
class Family:
    """Names and layout of the attention and feed-forward modules of one architecture.

    :param block: path of a layer, with ``*`` for its number, without the model's prefix.
    :param attention: paths in the layer of the modules whose ``forward`` computes attention.
    :param query: path in the attention module of the query projection, or of the projection that
        computes queries, keys and values at once.
    :param output: path in the attention module of the output projection, whose input is the
        concatenation of the heads' outputs; a leading ``../`` refers to the module's parent.
    :param key: path of the key projection; empty if ``query`` computes the keys.
    :param value: path of the value projection; empty if ``query`` computes the values.
    :param interleaved: whether the outputs of a fused projection are ordered by key/value head (the
        queries, the key and the value of the first one, then of the second, ...); otherwise all
        queries come first, then all keys, then all values.
    :param one_each: attributes of the attention module, with values for which ``forward`` reads a
        query, a key and a value of each query head from an interleaved projection. They are set if
        the key/value heads have unequal numbers of query heads, and keys and values are repeated.
    :param more: paths of further projections whose outputs belong to the query heads.
    :param per_head: modules and parameters of the attention module with one row per head, such as
        norms with a scale for each head or attention sinks, and which heads these are: ``"heads"``
        or ``"kv_heads"``. An embedding has one column per head, a list one module per head; a
        parameter may have several rows per head, such as a bias. A model may lack them.
    :param spanning: norms over the outputs of all heads of a projection, with their projection and
        which heads these are. Both keep all heads, since the norm of a kept head depends on the
        removed ones; only their result is sliced.
    :param by_head: arguments of the attention module's ``forward`` with one value per query head of
        the dense model, such as a position bias; their first or second axis is that of the heads.
    :param bias_by_head: the same for arguments of the attention function that ``forward`` calls.
    :param whole: tensors of the model that a sliced model needs for all heads, such as the table of
        a position bias that all layers read; a part of their names.
    :param head_dim: attribute of the attention module that holds the width of a head.
    :param attributes: attributes of the attention module that ``forward`` reads besides the
        weights, and what each counts: ``"heads"``, ``"kv_heads"`` or ``"width"`` (heads *
        head_dim). A name that starts with ``config.`` is an attribute of the module's config.
    :param requires: config values without which the architecture cannot be sliced by this row.
    :param adds_residual: whether the attention module adds its second argument to its output.
    :param returns_bias: whether the attention module returns the position bias for later layers.
    :param norm: path in the attention module of a norm of the sum of its input and its output, if
        the module applies one.
    :param unsliceable: why slicing heads would change what the kept heads compute; empty if it
        would not. Masking works in either case, and so does slicing channels.
    :param feed_forward: the feed-forward; ``None`` if its channels cannot be removed, as in a
        mixture of experts.
    :param hybrid: whether layers without one of these attention modules, such as those with a
        convolution or with linear attention, have a feed-forward, too.
    :param experts: the mixture of experts; ``None`` if there is none or its experts cannot be
        removed.
    """

    block: str
    attention: tuple[str, ...]
    query: str
    output: str
    key: str = ""
    value: str = ""
    interleaved: bool = False
    one_each: tuple[tuple[str, Any], ...] = ()
    more: tuple[str, ...] = ()
    per_head: tuple[tuple[str, str], ...] = ()
    spanning: tuple[tuple[str, str, str], ...] = ()
    by_head: tuple[str, ...] = ()
    bias_by_head: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    head_dim: str = "head_dim"
    attributes: tuple[tuple[str, str], ...] = ()
    requires: tuple[tuple[str, Any], ...] = ()
    adds_residual: bool = False
    returns_bias: bool = False
    norm: str = ""
    unsliceable: str = ""
    feed_forward: FeedForward | None = None
    hybrid: bool = False
    experts: Experts | None = None

    @property
    def fused(self) -> bool:
        """Whether one projection computes queries, keys and values."""
        return not self.key

    @property
    def needs_dense_heads(self) -> bool:
        """Whether a stock model with fewer heads would not compute what a sliced model does."""
        return bool(self.spanning or self.by_head or self.bias_by_head)

    @property
    def output_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return not self.output.startswith("../")
