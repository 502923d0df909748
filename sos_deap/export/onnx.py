"""Write a model as an ONNX graph, with transformers' own exporter, and check it in onnxruntime."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.files.atomic import whole_folder
from sos_deap.models.examples import random_inputs
from sos_deap.models.tokenizer import save_companions

#: What the export needs besides the package's own requirements.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

#: Dtypes of a graph's weights, each with the largest relative difference between onnxruntime and
#: torch in float32 that passes the check.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2}

_TRACED = (2, 8)  # rows and tokens of the inputs that the exporter traces
_CHECKED = ((1, 5), (3, 20))  # of those that the graph is checked on: none as it was traced


def write_onnx(
    model: PreTrainedModel, path: str | Path, name: str | None = None, dtype: str = "float32"
) -> float:
    """Write a model, pruned or not, as an ONNX graph, and compare that with the model.

    The graph is one forward pass without a key/value cache, for any number of rows and tokens. It
    takes what the model's tokenizer gives (``input_ids``, ``attention_mask``, ``token_type_ids``
    where the model tells segments apart, and the ``decoder_input_ids`` of an encoder-decoder) or
    ``pixel_values``.

    :param model: the model; it is left as it was.
    :param path: the folder to make: ``model.onnx``, its weights in ``model.onnx.data``, and the
        ``config.json`` and ``export.json`` with which ``transformers.exporters`` reads it back. It
        appears when the graph is whole and checked, or not at all.
    :param name: the folder or Hub name that the model was loaded from: its tokenizer and image
        settings are copied into the folder.
    :param dtype: of the weights and outputs, a key of :data:`TOLERANCES`.
    :returns: the largest difference of an output in onnxruntime from the model's, relative to the
        output's largest value, on rows of other lengths than those traced, some of them padded.
    :raises InputError: if a package is missing, if ``path`` holds anything already, if the exporter
        cannot handle the model, or if the difference is above its tolerance.
    """
    if dtype not in TOLERANCES:
        raise unknown("dtype of ONNX", dtype, TOLERANCES)
    _check_packages()
    kind = f"{type(model).__name__} model"
    with whole_folder(Path(path)) as folder:
        plain = _plain(model)
        weights = plain if dtype == "float32" else copy.deepcopy(plain).half()
        _exported(_twin(weights), kind).save_pretrained(folder)
        difference = _difference(plain, weights.dtype, folder / "model.onnx", kind)
        if not difference <= TOLERANCES[dtype]:  # so that NaN fails
            raise InputError(
                f"the ONNX graph of this {kind} is wrong: onnxruntime's outputs differ from the "
                f"model's by {difference:.1e}, more than {TOLERANCES[dtype]:.0e}"
                + ("; nothing was written" if dtype == "float32" else ": write it in float32")
            )
        if name is not None:
            save_companions(name, folder)
    return difference


def _check_packages() -> None:
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"writing ONNX needs {', '.join(missing)}, not installed here: "
            "pip install 'sos_deap[onnx]'"
        )
    if not hasattr(importlib.import_module("transformers.exporters.base"), "ExportedModel"):
        raise InputError(
            f"writing ONNX needs transformers 5.23 or later, not {transformers.__version__}: "
            "pip install 'sos_deap[onnx]'"
        )


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model as every onnxruntime computes it: for evaluation, on the CPU, in float32."""
    kinds = {(tensor.device.type, tensor.dtype) for tensor in model.parameters()}
    if kinds == {("cpu", torch.float32)} and not model.training:
        return model
    plain: Any = copy.deepcopy(model)
    result: PreTrainedModel = plain.eval().to("cpu", torch.float32)
    return result


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy for the exporter, sharing the weights: tracing leaves fake tensors in some modules."""
    twin: Any = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    if "use_cache" in inspect.signature(twin.forward).parameters:
        twin.forward = functools.partial(twin.forward, use_cache=False)
    result: PreTrainedModel = twin
    return result


def _exported(model: PreTrainedModel, name: str) -> Any:
    sample = _inputs(model, *_TRACED)
    # Where tracing would fix a length, Dim.DYNAMIC is an error. A Dim with a name is one also where
    # it finds a bound, such as the number of positions; so the names come afterwards.
    axes = {key: dict.fromkeys(_axes(key), torch.export.Dim.DYNAMIC) for key in sample}
    # Else the model's settings could add inner states to the outputs.
    flags = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
    try:
        with _quiet():
            exporter: Any = importlib.import_module("transformers.exporters.exporter_onnx")
            config = exporter.OnnxConfig(dynamic_shapes=axes)
            exported = exporter.OnnxExporter().export(model, sample | flags, config)
    except ImportError as error:
        raise InputError(f"cannot write ONNX with these packages: {first_line(error)}") from error
    except Exception as error:  # tracing runs the model's code and three libraries'
        cause: BaseException = error
        while cause.__cause__:  # the exporter's own errors say only which of its steps failed
            cause = cause.__cause__
        raise InputError(f"cannot write this {name} as ONNX: {first_line(cause)}") from error
    _tidy(exported.program.graph)
    return exported


def _tidy(graph: Any) -> None:
    """Name the graph's axes, and take out the stack traces, which name this machine's folders."""
    names = {
        str(entry.shape[axis]): name
        for entry in graph.inputs
        for axis, name in _axes(entry.name).items()
    }
    values = list(graph.inputs)
    for node in graph.all_nodes():
        node.metadata_props.clear()
        values.extend(node.outputs)
    for value in values:
        for axis, length in enumerate(value.shape or ()):
            value.shape[axis] = names.get(str(length), length)


def _difference(model: PreTrainedModel, dtype: torch.dtype, graph: Path, name: str) -> float:
    """The largest relative difference between onnxruntime, in a dtype, and the float32 model."""
    worst = [0.0]
    for rows, tokens in _CHECKED:
        batch = _inputs(model, rows, tokens)
        with torch.inference_mode():
            expected: Any = model(**batch, return_dict=True)
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        for output, found in _run(graph, given, name).items():
            if not isinstance(expected.get(output), Tensor):
                raise InputError(f"cannot check the ONNX graph of this {name}: it gives {output}")
            worst.append(_relative(found, expected[output], batch))
    return float(torch.tensor(worst).max())  # unlike max(), NaN if one of them is


def _run(graph: Path, batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """What onnxruntime computes on the CPU."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        feed = {entry.name: batch[entry.name].numpy() for entry in session.get_inputs()}
        outputs = [entry.name for entry in session.get_outputs()]
        values = session.run(outputs, feed)
    except Exception as error:  # its own classes of error have no common base
        raise InputError(f"onnxruntime cannot run this {name}: {first_line(error)}") from error
    return dict(zip(outputs, map(torch.from_numpy, values), strict=True))


def _relative(found: Tensor, expected: Tensor, batch: dict[str, Tensor]) -> float:
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == expected.shape[:2]:  # what padding computes is no matter
        found, expected = found[mask.bool()], expected[mask.bool()]
    return float((found.float() - expected).abs().max() / expected.abs().max())


def _inputs(model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Random inputs, the same in every call; some rows' ends and starts are padding."""
    batch = random_inputs(model, rows, tokens, decoder_tokens=tokens + 1)
    known = inspect.signature(model.forward).parameters
    if "attention_mask" in batch and rows > 1:
        batch["attention_mask"][0, -2:] = 0
        batch["attention_mask"][-1, :3] = 0
    if "token_type_ids" in known and getattr(model.config, "type_vocab_size", 0) > 1:
        random = torch.Generator().manual_seed(rows)
        batch["token_type_ids"] = torch.randint(2, (rows, tokens), generator=random)
    return {key: value for key, value in batch.items() if key in known}


def _axes(name: str) -> dict[int, str]:
    """The axes of an input that may have any length, and what to call them."""
    if name == "pixel_values":
        return {0: "batch"}
    return {0: "batch", 1: "decoder_tokens" if "decoder" in name else "tokens"}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporters print, log and warn of while they work: notes on themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # an error that matters is raised, too
    nowhere = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
