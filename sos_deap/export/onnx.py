"""Write a model as an ONNX graph with transformers' exporter, and check it in onnxruntime."""

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

#: Packages that the export needs besides the requirements of this package.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

#: Dtypes of a graph's weights, each with the maximum relative difference between onnxruntime and
#: torch in float32 that passes the check. That of int8 finds wrong graphs only: what a quantised
#: model loses depends on the model.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "int8": 0.5}

_TRACED = (2, 8)  # rows and tokens of the inputs that the exporter traces
_CHECKED = ((1, 5), (3, 20))  # rows and tokens of the inputs in the check, other than traced


def write_onnx(
    model: PreTrainedModel, path: str | Path, name: str | None = None, dtype: str = "float32"
) -> float:
    """Write a model, pruned or not, as an ONNX graph, and compare the graph with the model.

    The graph is one forward pass without a key/value cache, for any number of rows and tokens. Its
    inputs are those of the model's main modality, and ``token_type_ids`` if the model has several.

    :param model: the model; it is not changed.
    :param path: the folder to create. It holds ``model.onnx``, the weights in ``model.onnx.data``,
        and the ``config.json`` and ``export.json`` that ``transformers.exporters`` reads. The
        folder is written under a temporary name and renamed after the check.
    :param name: the folder or Hub name that the model was loaded from; its tokenizer and image
        processor are copied into the folder. Default: neither is copied.
    :param dtype: dtype of weights and outputs, a key of :data:`TOLERANCES`. ``"int8"`` quantises
        the matrices to 7 bits with onnxruntime's dynamic quantisation, with a scale per output;
        activations are quantised when the graph runs, and outputs are in float32.
    :returns: the maximum difference between an output in onnxruntime and the model's, relative to
        the output's maximum, on inputs of other sizes than those traced, with and without padding.
    :raises InputError: if a package is missing, if ``path`` is not empty, if the exporter cannot
        convert the model, or if the difference exceeds the tolerance.
    """
    if dtype not in TOLERANCES:
        raise unknown("dtype of ONNX", dtype, TOLERANCES)
    _check_packages()
    kind = f"{type(model).__name__} model"
    with whole_folder(Path(path)) as folder:
        plain = _plain(model)
        weights = copy.deepcopy(plain).half() if dtype == "float16" else plain
        _exported(_twin(weights), kind).save_pretrained(folder)
        if dtype == "int8":
            _quantize(folder, kind)
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
    """Return the model in evaluation mode on the CPU in float32, which any onnxruntime computes."""
    kinds = {(tensor.device.type, tensor.dtype) for tensor in model.parameters()}
    if kinds == {("cpu", torch.float32)} and not model.training:
        return model
    plain: Any = copy.deepcopy(model)
    result: PreTrainedModel = plain.eval().to("cpu", torch.float32)
    return result


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model for the exporter with shared weights; tracing leaves fake tensors in modules."""
    twin: Any = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    if "use_cache" in inspect.signature(twin.forward).parameters:
        twin.forward = functools.partial(twin.forward, use_cache=False)
    result: PreTrainedModel = twin
    return result


def _exported(model: PreTrainedModel, name: str) -> Any:
    sample, axes = _inputs(model, *_TRACED), _axes(model)
    # Dim.DYNAMIC raises an error if tracing specialises a length. A named Dim also raises one if it
    # finds a bound, such as the number of positions; so the axes are named after tracing.
    dynamic = {key: dict.fromkeys(axes[key], torch.export.Dim.DYNAMIC) for key in sample}
    # The model's settings must not add hidden states or attention weights to the outputs.
    flags = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
    try:
        with _quiet():
            exporter: Any = importlib.import_module("transformers.exporters.exporter_onnx")
            config = exporter.OnnxConfig(dynamic_shapes=dynamic)
            exported = exporter.OnnxExporter().export(model, sample | flags, config)
    except ImportError as error:
        raise InputError(f"cannot write ONNX with these packages: {first_line(error)}") from error
    except Exception as error:  # tracing runs code of the model and of three libraries
        cause: BaseException = error
        while cause.__cause__:  # the exporter's own errors name only the failed step
            cause = cause.__cause__
        raise InputError(f"cannot write this {name} as ONNX: {first_line(cause)}") from error
    _tidy(exported.program.graph, axes)
    return exported


def _quantize(folder: Path, name: str) -> None:
    """Replace a graph in float32 by a quantised one."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    whole, quantized = folder / "model.onnx", folder / "quantized.onnx"
    # With weights of 8 bits, sums of two products saturate on CPUs without VNNI; hence 7 bits.
    settings = {"weight_type": quantization.QuantType.QInt8, "reduce_range": True}
    try:
        with _quiet():
            quantization.quantize_dynamic(
                whole, quantized, use_external_data_format=True, per_channel=True, **settings
            )
    except Exception as error:  # of three libraries
        raise InputError(f"onnxruntime cannot quantise this {name}: {first_line(error)}") from error
    for path in (whole, whole.with_suffix(".onnx.data")):
        path.unlink(missing_ok=True)
    onnx: Any = importlib.import_module("onnx")
    graph = onnx.load(quantized)  # with its data, to save both under the usual names
    onnx.save(graph, whole, save_as_external_data=True, location=f"{whole.name}.data")
    for path in (quantized, quantized.with_suffix(".onnx.data")):
        path.unlink(missing_ok=True)


def _tidy(graph: Any, axes: dict[str, dict[int, str]]) -> None:
    """Name the graph's axes, and remove stack traces, which contain paths of this machine."""
    names = {
        str(entry.shape[axis]): name
        for entry in graph.inputs
        for axis, name in axes[entry.name].items()
    }
    values = list(graph.inputs)
    for node in graph.all_nodes():
        node.metadata_props.clear()
        values.extend(node.outputs)
    for value in values:
        for axis, length in enumerate(value.shape or ()):
            value.shape[axis] = names.get(str(length), length)


def _difference(model: PreTrainedModel, dtype: torch.dtype, graph: Path, name: str) -> float:
    """Return the maximum relative difference between onnxruntime and the model in float32."""
    worst = [0.0]
    for rows, tokens in _CHECKED:
        batch = _inputs(model, rows, tokens)
        with torch.inference_mode():
            expected: Any = model(**batch, return_dict=True)
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        for output, found in _run(graph, given, name).items():
            own: Any = expected
            for part in output.split("."):  # such as text_model_output.pooler_output of CLIP
                own = own.get(part) if isinstance(own, dict) else None
            if not isinstance(own, Tensor):
                raise InputError(
                    f"cannot check the ONNX graph of this {name}: unknown output {output}"
                )
            worst.append(_relative(found, own, batch))
    return float(torch.tensor(worst).max())  # unlike max(), NaN if an entry is NaN


def _run(graph: Path, batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Run a graph in onnxruntime on the CPU, and return its outputs by name."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        feed = {entry.name: batch[entry.name].numpy() for entry in session.get_inputs()}
        outputs = [entry.name for entry in session.get_outputs()]
        values = session.run(outputs, feed)
    except Exception as error:  # its error classes have no common base class
        raise InputError(f"onnxruntime cannot run this {name}: {first_line(error)}") from error
    return dict(zip(outputs, map(torch.from_numpy, values), strict=True))


def _relative(found: Tensor, expected: Tensor, batch: dict[str, Tensor]) -> float:
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == expected.shape[:2]:  # outputs at padding are arbitrary
        found, expected = found[mask.bool()], expected[mask.bool()]
    return float((found.float() - expected).abs().max() / expected.abs().max())


def _inputs(model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Random inputs, equal for equal sizes; the first and the last of several rows are padded."""
    batch = random_inputs(model, rows, tokens, decoder_tokens=tokens + 1)
    accepted = inspect.signature(model.forward).parameters
    if "attention_mask" in batch and rows > 1:
        batch["attention_mask"][0, -2:] = 0
        if "pixel_values" not in batch:  # CLIP may read the text at its first token
            batch["attention_mask"][-1, :3] = 0
    if "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1:
        random = torch.Generator().manual_seed(rows)
        batch["token_type_ids"] = torch.randint(2, (rows, tokens), generator=random)
    return {key: value for key, value in batch.items() if key in accepted}


def _axes(model: PreTrainedModel) -> dict[str, dict[int, str]]:
    """Return the axes of each input that may have any length, with their names."""
    rows, tokens = _TRACED
    batch, larger = _inputs(model, rows, tokens), _inputs(model, rows + 1, tokens + 1)
    axes = dict[str, dict[int, str]]()
    for key, value in batch.items():
        length = "samples" if key == "input_values" else "tokens"
        names = {0: "batch", 1: f"decoder_{length}" if "decoder" in key else length}
        pairs = zip(value.shape, larger[key].shape, strict=True)
        axes[key] = {axis: names[axis] for axis, (one, more) in enumerate(pairs) if one != more}
    return axes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the exporters print, log and warn about; it concerns the exporters only."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # relevant errors are raised as well
    discarded = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(discarded),
            contextlib.redirect_stderr(discarded),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
