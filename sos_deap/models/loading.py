"""Load a model with its weights: from a folder, from the Hub, or from this package."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, PreTrainedModel

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.models.devices import checked_device, checked_dtype, cpu_dtype
from sos_deap.models.families import FAMILIES
from sos_deap.models.generating import padding_token, token_settings
from sos_deap.models.purposes import PURPOSES, is_encoder, own_class
from sos_deap.models.quantised import check_quantisation, check_torchao, int8_config, quantisation
from sos_deap.models.saving import pruned_type
from sos_deap.models.sources import cannot_load, quiet, read_config, source
from sos_deap.models.tokenizer import load_tokenizer
from sos_deap.models.weight_files import key_mapping, stored_dtype

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A model with its tokenizer.

    :param model: the model, in evaluation mode on its device.
    :param tokenizer: the tokenizer.
    :param stored_dtype: the dtype of the weights in the model's files.
    """

    model: PreTrainedModel
    tokenizer: Any
    stored_dtype: torch.dtype

    @property
    def is_encoder(self) -> bool:
        """Whether the model is an encoder such as BERT, which reads text in both directions."""
        return is_encoder(self.model.config)


def load(
    name: str | Path, *, dtype: str | torch.dtype = "auto", quantize: str = "none"
) -> PreTrainedModel:
    """Load a model, pruned or not, as the class that it was saved from.

    Only safetensors weights are read, and no code in the folder is run.

    :param name: a folder, such as one written by the ``save_pretrained`` of a pruned model, a Hub
        name, or ``"builtin:tiny"``.
    :param dtype: dtype of the loaded weights, as for ``from_pretrained``; ``"auto"`` is the dtype
        of the weights in the files, also where the config states another one.
    :param quantize: ``"int8"`` to quantise the linear layers, as for :func:`load_pretrained`; a
        folder with int8 weights is read as it is.
    :returns: the model, in evaluation mode.
    :raises InputError: if the model is missing, damaged, or of an unknown class, and if it cannot
        be quantised.
    """
    config = read_config(str(name))
    return _read_weights(str(name), config, own_class(str(name), config), dtype, quantize)


def load_pretrained(
    name: str,
    purpose: str = "language modelling",
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
) -> Pretrained:
    """Load a model to prune, and its tokenizer.

    :param name: a folder, a Hub name, or a key of :data:`~sos_deap.models.sources.BUILTIN`.
    :param purpose: a key of :data:`~sos_deap.models.purposes.PURPOSES`.
    :param device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    :param dtype: a key of :data:`~sos_deap.models.devices.DTYPES`; ``"auto"`` is the result of
        :func:`~sos_deap.models.devices.cpu_dtype` on a CPU and the stored dtype elsewhere.
    :param quantize: ``"int8"`` to round the weights of the linear layers, except the output layer,
        to integers of 8 bits with one scale for each row (torchao's weight-only quantisation).
    :raises InputError: for an unknown model, architecture, device or dtype, for a model that is
        quantised or already pruned, for one that is unsuitable for the purpose, for one without
        linear layers to quantise, and if torchao is needed and not installed.
    """
    place = checked_device(device)
    chosen = checked_dtype(dtype) or (cpu_dtype() if place.type == "cpu" else None)
    config = read_config(name)
    check_prunable(name, config)
    stock = PURPOSES[purpose](name, config)
    model: Any = _read_weights(name, config, stock, chosen or "auto", quantize)
    tokenizer = load_tokenizer(name)
    # Without a padding token, stock classes accept batches of one text only.
    model.config.pad_token_id = padding_token(model, tokenizer)
    stored = stored_dtype(source(name), config) or model.dtype
    return Pretrained(model.to(place), tokenizer, stored)


def load_as(name: str, kind: type, dtype: str, quantize: str = "none") -> PreTrainedModel:
    """Load a model as a given class, on the CPU.

    :param name: a folder, a Hub name, or a key of :data:`~sos_deap.models.sources.BUILTIN`.
    :param kind: the model class.
    :param dtype: dtype of the loaded weights, as for ``from_pretrained``.
    :param quantize: as for :func:`load_pretrained`.
    :raises InputError: if the model is missing or damaged, and if it cannot be quantised.
    """
    return _read_weights(name, read_config(name), kind, dtype, quantize)


def load_encoder(name: str) -> tuple[PreTrainedModel, Any]:
    """Load an encoder without a task head, in float32, and its tokenizer.

    :param name: a folder, a Hub name, or a key of :data:`~sos_deap.models.sources.BUILTIN`.
    :raises InputError: if the model is missing, damaged, or not an encoder.
    """
    config = read_config(name)
    if not is_encoder(config):
        raise InputError(f"{name} is a {config.model_type} model: give an encoder such as RoBERTa")
    return _read_weights(name, config, MODEL_MAPPING[type(config)], "float32"), load_tokenizer(name)


def check_prunable(name: str, config: Any) -> None:
    """Check that a model is neither quantised nor already pruned.

    :param name: the model's name, for the error message.
    :param config: its config.
    :raises InputError: if it is quantised or already pruned.
    """
    if getattr(config, "kept_heads", None) is not None:
        raise InputError(
            f"{name} is already pruned: prune the original, with all the heads to remove"
        )
    if quantised := getattr(config, "quantization_config", None):
        how = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise InputError(
            f"{name} is quantised ({how}): prune the original, with --quantize int8 "
            "if it does not fit into the memory"
        )


def _read_weights(
    name: str, config: Any, stock: Any, dtype: str | torch.dtype, quantize: str = "none"
) -> PreTrainedModel:
    """Read a model; raise :class:`InputError` if a weight is missing instead of initialising it."""
    options = _quantising(name, config, quantize)
    pruned = getattr(config, "kept_heads", None) is not None
    if pruned and stock.config_class.model_type not in FAMILIES:
        raise unknown(f"architecture of the pruned {name}", config.model_type, FAMILIES)
    kind: Any = pruned_type(stock) if pruned else stock
    try:
        with quiet():
            stored, renamed = stored_dtype(source(name), config), key_mapping(source(name), config)
            wanted = stored or "float32" if dtype == "auto" else dtype
            model, info = kind.from_pretrained(
                source(name),
                config=config,
                key_mapping=renamed,
                **({"dtype": wanted} | options),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except InputError:
        raise
    except Exception as error:  # damaged files cause errors of many types in three libraries
        raise cannot_load("model", name, error) from error
    if not pruned:
        info.pop("unexpected_keys", None)  # such as the head of another task
    if wrong := {what: sorted(map(str, names)) for what, names in info.items() if names}:
        what, names = next(iter(wrong.items()))
        saved_as = (config.architectures or ["another class"])[0]
        if what == "missing_keys" and saved_as != stock.__name__:
            raise InputError(
                f"{name} was saved as {saved_as} and lacks {len(names)} weights of "
                f"{stock.__name__}, such as {names[0]}: give a model that has them"
            )
        raise InputError(
            f"the weights of {name} do not fit its config.json: {len(names)} "
            f"{what.replace('_', ' ')}, such as {names[0]}; save or download the model again"
        )
    if renamed:
        model._weight_conversions = []  # it is saved under the names of its own class
        _log.warning("%s: the language model of a multimodal model, without its other parts", name)
    if options:
        _check_quantised(name, model)
        model.to(getattr(torch, wanted) if isinstance(wanted, str) else wanted)
    _tidy(model)
    result: PreTrainedModel = model.eval()
    return result


def _quantising(name: str, config: Any, quantize: str) -> dict[str, Any]:
    """Return the arguments with which ``from_pretrained`` quantises; empty without quantisation.

    :raises InputError: for an unknown quantisation, and if torchao is needed and not installed.
    """
    check_quantisation(quantize)
    own = getattr(config, "quantization_config", None)
    if isinstance(own, dict) and own.get("quant_method") == "torchao":
        check_torchao(f"the int8 weights of {name}")
    if quantize == "none":
        return {}
    if own:
        raise InputError(f"{name} is quantised already: leave --quantize out")
    # The integers must not depend on the dtype that the model computes in.
    return {"quantization_config": int8_config(), "dtype": torch.float32}


def _check_quantised(name: str, model: Any) -> None:
    """Raise :class:`InputError` if no weight was quantised."""
    if quantisation(model) == "none":
        raise InputError(
            f"{name} is a {model.config.model_type} model, whose projections are not nn.Linear, "
            "which int8 needs: leave --quantize out"
        )


def _tidy(model: Any) -> None:
    """Reset settings that stock classes read from a folder but refuse to save."""
    # They control what a call returns; tasks read outputs by name.
    model.config.output_attentions = model.config.output_hidden_states = False
    model.config.return_dict = True
    own = getattr(model, "generation_config", None)
    try:
        if own is not None:
            own.validate(strict=True)
    except Exception as error:
        _log.warning("only the token ids of generation settings are kept: %s", first_line(error))
        model.generation_config = token_settings(model)
