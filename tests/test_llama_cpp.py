"""Times of GGUF files in llama.cpp."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest
from transformers import AutoTokenizer

from sos_deap import InputError, prune
from sos_deap.__main__ import main
from sos_deap.export import llama_cpp
from sos_deap.export.gguf import write_gguf
from sos_deap.models.sources import BUILTIN
from tests.conftest import small_llama

gguf = pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("xllamacpp", reason="needs llama.cpp: the package xllamacpp")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, model = tmp_path_factory.mktemp("files"), small_llama()
    tokenizer: Any = AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])
    for name, one in (("dense", model), ("pruned", prune(model, [0] * 4 + [1] * 8))):
        write_gguf(one, tokenizer, folder / f"{name}.gguf")
    return [str(folder / "pruned.gguf"), str(folder / "dense.gguf")]


def test_two_files_are_timed(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned, dense = files
    sizes = ["--lengths", "20", "--new_tokens", "4", "--rounds", "3"]
    output = ["--output", str(tmp_path / "out.json")]
    flags = ["--against", dense, "--runtime", "llama.cpp", *sizes, *output]
    assert main(["measure", pruned, *flags]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert list(row["models"]) == ["dense", "pruned"] and row["rounds"] == 3
    for figures, path in zip(row["models"].values(), (dense, pruned), strict=True):
        assert 0 < figures["decode_seconds"] < 10 and 0 < figures["prefill_seconds"] < 10
        assert figures["prefill_tokens_per_second"] == 20 / figures["prefill_seconds"]
        tensors = gguf.GGUFReader(path).tensors
        assert figures["weight_bytes"] == sum(int(tensor.n_bytes) for tensor in tensors)
    assert 0 < row["gains"]["pruned"]["decode_bound"] < 0.5
    assert "1 x 20 tokens, medians of 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runtime", "llama"], "unknown runtime 'llama': did you mean 'llama.cpp'"),
        (["--runtime", "llama.cpp", "--batch_sizes", "2"], "leave --batch_sizes out"),
        (["--runtime", "llama.cpp", "--dtype", "float16"], "--dtype is for the runtime torch"),
        (["--runtime", "llama.cpp", "--new_tokens", "0"], "give --new_tokens 2 or more"),
        (["--runtime", "llama.cpp"], "builtin:tiny is not a file: the runtime llama.cpp measures"),
    ],
)
def test_refused_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "builtin:tiny", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def fails(*_: Any, **__: Any) -> Any:
    """A process that writes its error before the log of its end."""
    return subprocess.CompletedProcess([], 1, "error: no memory\n", "main loop exited\n")


def test_files_that_cannot_be_measured(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(InputError, match="text.gguf is not a GGUF file: write one with export"):
        llama_cpp.measure_files({"model": str(tmp_path / "text.gguf")}, [8], 2, 1, 1)
    with pytest.raises(InputError, match="pruned.gguf has .* positions: 1,000,000 tokens of a pro"):
        llama_cpp.measure_files({"model": files[0]}, [8, 1_000_000], 2, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", fails)
        with pytest.raises(InputError, match="run the files: error: no memory$"):
            llama_cpp.measure_files({"model": files[0]}, [8], 2, 1, 1)
    # A file that is no model, such as an importance matrix.
    writer = gguf.GGUFWriter(tmp_path / "matrix.gguf", "x")
    writer.kv_data[0].clear()
    writer.add_tensor("a", numpy.zeros(1, "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="matrix.gguf names no architecture: give the GGUF file"):
        llama_cpp.measure_files({"model": str(tmp_path / "matrix.gguf")}, [8], 2, 1, 1)
    # A file of another architecture, which llama.cpp refuses to load.
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(files[0]).read_bytes().replace(b"deci", b"dexi"))
    with pytest.raises(InputError, match="llama.cpp cannot run the files: .") as e:
        llama_cpp.measure_files({"model": str(broken)}, [8], 2, 1, 1)
    assert "\n" not in str(e.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package gguf: .*sos_deap\[llama-cpp\]"):
        llama_cpp.measure_files({"model": files[0]}, [8], 2, 1, 1)
