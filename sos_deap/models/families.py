"""Where each architecture keeps its attention heads: one row per architecture, nothing else.

To add one, add a row; tests/test_families.py picks it up. Paths are those of the classes in
`transformers.models`, below a model's prefix (`model.`, `transformer.`, `bert.`, or none).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The names of the attention parts in one architecture.

    :param block: path of a layer, with ``*`` for its number; what stands before it is a prefix.
    :param attention: path in the layer of the module whose ``forward`` computes the attention.
    :param query: path in that module of the query projection.
    :param key: the same for the keys.
    :param value: the same for the values. Three equal paths mean one fused projection, whose
        outputs are all the query heads, then all the key heads, then all the value heads.
    :param output: path in the *layer* of the output projection, whose input is the heads' outputs
        side by side. Outside ``attention`` in the BERT line.
    :param split_size: attribute of the attention module that holds the width of one part of a
        fused projection, where ``forward`` splits by it.
    """

    block: str
    attention: str
    query: str
    key: str
    value: str
    output: str
    split_size: str | None = None

    @property
    def fused(self) -> bool:
        """Whether one projection makes queries, keys and values."""
        return self.query == self.key == self.value

    @property
    def output_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return self.output.startswith(self.attention + ".")


_BERT = Family(
    block="encoder.layer.*",
    attention="attention.self",
    query="query",
    key="key",
    value="value",
    output="attention.output.dense",
)

#: Architectures by ``config.model_type``.
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "distilbert": Family(
        block="transformer.layer.*",
        attention="attention",
        query="q_lin",
        key="k_lin",
        value="v_lin",
        output="attention.out_lin",
    ),
    "gpt2": Family(
        block="h.*",
        attention="attn",
        query="c_attn",
        key="c_attn",
        value="c_attn",
        output="attn.c_proj",
        split_size="split_size",
    ),
    "llama": Family(
        block="layers.*",
        attention="self_attn",
        query="q_proj",
        key="k_proj",
        value="v_proj",
        output="self_attn.o_proj",
    ),
    "roberta": _BERT,
}
