"""Write a Llama model as a folder of DeciLM (``nemotron-nas``), which has sizes per layer.

Its ``block_configs`` state for each layer the number of query heads per key/value head and the
width of the feed-forward, or that a sub-layer is left out. The loaders of mlx-lm, vLLM, SGLang and
TensorRT-LLM compute the width from ``ffn_mult`` and round it up to a multiple of 256, and have the
same number of query heads in all layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from sos_deap.errors import InputError
from sos_deap.files.atomic import whole_folder, write_json
from sos_deap.models.tokenizer import save_companions

_WIDTHS = 256  # all widths of the feed-forward are multiples of it


def write_deci(model: PreTrainedModel, path: Path, name: str | None = None) -> int:
    """Write a Llama model, pruned or not, in the layout of DeciLM.

    What the format cannot express is padded with zeros: widths of the feed-forward to multiples of
    256, query heads to the number of the dense model, and key/value heads to a divisor of it. So
    removed key/value heads save bytes and cache, and removed query heads save nothing. A sub-layer
    without units is left out, except for the attention of the first layer, which vLLM requires.

    :param model: a ``LlamaForCausalLM``; it is not changed.
    :param path: the folder to create: weights by Llama's names, ``config.json`` and the tokenizer.
    :param name: the folder or Hub name whose tokenizer is copied; default: none is.
    :returns: the number of weights that are padding.
    :raises InputError: for a model that the format cannot express, and if ``path`` is not empty.
    """
    _check(model)
    config: Any = model.config
    tensors, blocks = dict[str, Tensor](), list[dict[str, Any]]()
    others = {n: t for n, t in model.state_dict().items() if not n.startswith("model.layers.")}
    if config.tie_word_embeddings:
        others.pop("lm_head.weight", None)
    stack: Any = model.model
    for i, layer in enumerate(stack.layers):
        group, attention = _attention(layer, config, needed=i == 0)
        width, feed_forward = _feed_forward(layer)
        own = {**attention, **feed_forward}
        tensors |= {f"model.layers.{i}.{n}": tensor for n, tensor in own.items()}
        blocks.append(
            {
                "attention": {"no_op": not group, "replace_with_linear": False}
                | {"n_heads_in_group": group or None},
                "ffn": {"no_op": not width, "replace_with_linear": False}
                # In the middle between two multiples, so that no rounding changes the result.
                | {"ffn_mult": 1.5 * (width - _WIDTHS / 2) / config.hidden_size if width else None},
            }
        )
    padding = _in_matrices(tensors.values()) - _in_matrices(stack.layers.parameters())
    with whole_folder(path) as folder:
        tensors = {n: t.detach().cpu().contiguous() for n, t in (others | tensors).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", _config(config, blocks, model.dtype))
        if name is not None:
            save_companions(name, folder)
    return padding


def _check(model: PreTrainedModel) -> None:
    config: Any = model.config
    if not isinstance(model, LlamaForCausalLM):
        raise InputError(
            f"a {type(model).__name__} cannot be written as deci: give a LlamaForCausalLM, pruned "
            "by the genes groups, channels, attention, ffn or layers"
        )
    if config.attention_bias or config.mlp_bias:
        raise InputError("the model has biases, which the loaders of deci treat differently")
    if config.num_attention_heads * config.head_dim != config.hidden_size:
        raise InputError(
            f"the model has {config.num_attention_heads} heads of {config.head_dim} numbers: deci "
            f"needs heads as wide together as the hidden size, {config.hidden_size}"
        )


def _in_matrices(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor.dim() > 1)


def _attention(layer: Any, config: Any, *, needed: bool) -> tuple[int, dict[str, Tensor]]:
    """Return the query heads per key/value head, 0 without attention, and the padded tensors."""
    heads, width = config.num_attention_heads, config.head_dim
    norm, module = layer.input_layernorm.weight, layer.self_attn
    if not hasattr(module, "q_proj"):
        if not needed:
            return 0, {}
        zeros = norm.new_zeros(heads * width, config.hidden_size)
        names = {"q": zeros, "k": zeros[:width], "v": zeros[:width], "o": zeros.T}
        tensors = {
            f"self_attn.{part}_proj.weight": tensor.clone() for part, tensor in names.items()
        }
        return heads, tensors | {"input_layernorm.weight": norm}
    count, kv_heads = (len(getattr(module, f"{n}_proj").weight) // width for n in "qk")
    uses = getattr(module.config, "ragged", None) or [count // kv_heads] * kv_heads
    # The least number of key/value heads that divides the query heads into groups large enough.
    kept = next(n for n in range(kv_heads, heads + 1) if heads % n == 0 and heads // n >= max(uses))
    group = heads // kept
    slots = torch.tensor([j * group + k for j, use in enumerate(uses) for k in range(use)])
    rows = (slots[:, None] * width + torch.arange(width)).flatten()
    query = norm.new_zeros(heads * width, config.hidden_size)
    query[rows] = module.q_proj.weight.detach()
    output = norm.new_zeros(config.hidden_size, heads * width)
    output[:, rows] = module.o_proj.weight.detach()
    tensors = {"self_attn.q_proj.weight": query, "self_attn.o_proj.weight": output}
    for part in ("k_proj", "v_proj"):
        tensors[f"self_attn.{part}.weight"] = _padded(
            getattr(module, part).weight, kept * width, axis=0
        )
    return group, tensors | {"input_layernorm.weight": norm}


def _feed_forward(layer: Any) -> tuple[int, dict[str, Tensor]]:
    """Return the padded width of the feed-forward, 0 without one, and its tensors."""
    mlp = layer.mlp
    if not (channels := mlp.down_proj.in_features):
        return 0, {}
    width = -(-channels // _WIDTHS) * _WIDTHS
    tensors = {
        f"mlp.{part}.weight": _padded(getattr(mlp, part).weight, width, axis)
        for part, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1))
    }
    return width, tensors | {
        "post_attention_layernorm.weight": layer.post_attention_layernorm.weight
    }


def _padded(weight: Tensor, size: int, axis: int) -> Tensor:
    """Return a matrix with zeros up to a number of rows (axis 0) or columns (axis 1)."""
    missing = size - weight.shape[axis]
    sides = (0, 0, 0, missing) if axis == 0 else (0, missing)
    return torch.nn.functional.pad(weight.detach(), sides)


def _config(config: Any, blocks: list[dict[str, Any]], dtype: torch.dtype) -> dict[str, Any]:
    rope = dict(config.rope_parameters)
    names = (
        *("bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size"),
        *("initializer_range", "max_position_embeddings", "num_attention_heads"),
        *("num_hidden_layers", "rms_norm_eps", "tie_word_embeddings", "vocab_size"),
    )
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "attention_bias": False,
        "mlp_bias": False,
        "num_key_value_heads": None,
        **{name: getattr(config, name) for name in names},
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "block_configs": blocks,
    }
