"""Linear layers with int8 weights: the weight-only quantisation of torchao.

Each row of a matrix, which computes one output, has a scale; its elements are integers from -128 to
127. A product converts the integers to the dtype of the input and multiplies each output by its
scale, so that an output depends neither on the other inputs of the batch nor on masked units.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sos_deap.errors import InputError, unknown

#: Quantisation of the linear layers: none, or integers of 8 bits.
QUANTISATIONS = ("none", "int8")


def check_quantisation(name: str) -> None:
    """Check that a quantisation is known and that its package is installed.

    :param name: one of :data:`QUANTISATIONS`.
    :raises InputError: if it is not.
    """
    if name not in QUANTISATIONS:
        raise unknown("quantize", name, QUANTISATIONS)
    if name == "int8":
        check_torchao("int8 weights")


def check_quantisations(searched: str, written: str) -> None:
    """Check the quantisations of a run.

    :param searched: that of the model of the search.
    :param written: that of the pruned model.
    :raises InputError: for an unknown one, for int8 weights of the pruned model alone, which the
        search would not evaluate, and if torchao is needed and not installed.
    """
    for name in (searched, written):
        check_quantisation(name)
    if written == "int8" and searched == "none":
        raise InputError(
            "quantize_output is int8, and the search would evaluate other weights: give --quantize "
            "int8, or prune with the chromosome: python -m sos_deap prune --quantize int8"
        )


def check_torchao(what: str) -> None:
    """Raise :class:`InputError` if torchao is not installed.

    :param what: what needs it, for the message.
    """
    if find_spec("torchao") is None:
        raise InputError(f"{what} need the package torchao: pip install 'sos_deap[int8]'")


def int8_config() -> Any:
    """Return the config with which transformers quantises all linear layers but the output's."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def is_int8(weight: Any) -> bool:
    """Whether a weight has integers of 8 bits and a scale for each row, and nothing else is int8.

    :param weight: a parameter.
    """
    return (
        type(weight).__name__ == "Int8Tensor"
        and weight.act_quant_kwargs is None
        and weight.qdata.dim() == 2
        and weight.scale.shape == (len(weight.qdata), 1)
    )


def quantisation(model: nn.Module) -> str:
    """Return the quantisation of a model, one of :data:`QUANTISATIONS`.

    :param model: the model.
    """
    return "int8" if any(map(is_int8, model.parameters())) else "none"


def dequantised(weight: Any) -> Tensor:
    """Return a weight as floating-point numbers; one that has such numbers already as it is.

    :param weight: a weight.
    """
    found: Tensor = weight.dequantize() if is_int8(weight) else weight
    return found


def set_weight(module: Any, weight: Tensor) -> None:
    """Give a projection with int8 weights new ones; others were changed in place and stay.

    :param module: the projection.
    :param weight: (outputs, inputs).
    """
    if is_int8(module.weight) and not torch.equal(weight, dequantised(module.weight)):
        from torchao.quantization import Int8Tensor, PerRow

        rounded = Int8Tensor.from_hp(weight.float(), PerRow()).to(weight.dtype)
        module.weight = nn.Parameter(rounded, requires_grad=False)


def stored_parts(parameter: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a parameter consists of, by what is added to its name.

    :param parameter: a parameter; one that is not quantised consists of itself.
    """
    if not is_int8(parameter):
        yield "", parameter
        return
    for name in parameter.__tensor_flatten__()[0]:
        yield f".{name}", getattr(parameter, name)


def weight_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of a model's parameters.

    :param model: the model.
    :param dtype: the dtype of the parameters that are not quantised; default: their own.
    """
    return sum(
        tensor.nbytes if dtype is None or name else tensor.numel() * dtype.itemsize
        for parameter in model.parameters()
        for name, tensor in stored_parts(parameter)
    )


def dtype_name(model: Any) -> str:
    """Return the dtype of a model, and its quantisation if it has one, such as ``"float32"``.

    :param model: a transformers model.
    """
    name = str(model.dtype).removeprefix("torch.")
    return name if quantisation(model) == "none" else f"{name} with int8 weights"


def check_floating(name: str, model: nn.Module) -> None:
    """Raise :class:`InputError` for a model with int8 weights.

    :param name: the model's name, for the message.
    :param model: the model.
    """
    if quantisation(model) != "none":
        raise InputError(
            f"{name} has int8 weights, which this format cannot hold: give the model in floating "
            "point, as --quantize_output none writes it"
        )
