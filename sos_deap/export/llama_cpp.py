"""Measure how fast llama.cpp computes GGUF files, in a process of its own.

llama.cpp ends its process on input that it does not expect. So this module is also a program: it
reads a job from standard input and writes the times, as JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sos_deap.errors import InputError
from sos_deap.models.measure import check_sizes
from sos_deap.models.timing import Times, timed

_RESULT, _ERROR = "RESULT ", "error: "
_MOST_LOGGED = 200  # characters of the last line of llama.cpp's log in an error message


def measure_files(
    files: Mapping[str, str],
    lengths: Sequence[int],
    new_tokens: int,
    rounds: int | None,
    seconds: float,
) -> list[dict[str, Any]]:
    """Time GGUF files in llama.cpp alternately, with its own clock, after a warm-up.

    :param files: paths of GGUF files by name; the second is compared with the first.
    :param lengths: prompt lengths in tokens; prompts are random.
    :param new_tokens: tokens to decode after the prompt, at least 2, whatever they are.
    :param rounds: how often each file is timed; ``None``: until the quartiles settle.
    :param seconds: after this time no further round starts.
    :returns: rows as of :func:`sos_deap.models.measure.measure`, without memory and operations,
        with ``prefill_tokens_per_second`` and the number of ``threads``. A bound is the saving of
        bytes read for a token, without the key/value cache.
    :raises InputError: for invalid sizes, a path that is not a GGUF file, a missing package, and a
        file that llama.cpp cannot load.
    """
    check_sizes([1], lengths, new_tokens, rounds, seconds)
    if not new_tokens:
        raise InputError("llama.cpp decodes at least 2 new tokens: give --new_tokens 2 or more")
    _check_packages()
    read = {}
    for name, path in files.items():
        reader = _reader(Path(path))
        _check_positions(path, reader, max(lengths), new_tokens)
        read[name] = _weight_bytes(reader)
    rows = []
    for length in lengths:
        threads = torch.get_num_threads()
        job = {"files": dict(files), "length": length, "new_tokens": new_tokens}
        times = _run(job | {"rounds": rounds, "seconds": seconds, "threads": threads})
        models = {
            name: one.figures(1)
            | {"weight_bytes": read[name][0], "peak_bytes": None, "kv_bytes_per_token": None}
            for name, one in times.items()
        }
        for figures in models.values():
            figures["prefill_tokens_per_second"] = length / figures["prefill_seconds"]
        first = next(iter(times))
        gains = {
            name: {"prefill_bound": None, "decode_bound": 1 - read[name][1] / read[first][1]}
            for name in list(times)[1:]
        }
        row: dict[str, Any] = {
            "batch_size": 1,
            "length": length,
            "new_tokens": new_tokens,
            "threads": threads,
        }
        row |= {"runtime": "llama.cpp", "rounds": len(times[first].prefill)}
        rows.append(row | {"models": models, "gains": gains})
    return rows


def _check_packages() -> None:
    for package in ("gguf", "xllamacpp"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"measuring in llama.cpp needs the package {package}: "
                "pip install 'sos_deap[llama-cpp]'"
            )


def _reader(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} is not a file: the runtime llama.cpp measures GGUF files")
    try:
        return importlib.import_module("gguf").GGUFReader(path)
    except Exception as error:  # damaged files cause errors of many types
        raise InputError(f"{path} is not a GGUF file: write one with export --format gguf") from (
            error
        )


def _weight_bytes(reader: Any) -> tuple[int, int]:
    """Return the bytes of a file's weights, and of those that are read for each token."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    total = sum(sizes.values())
    # Of an embedding that is not the output matrix, too, one row is read.
    return total, total - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def _check_positions(path: str, reader: Any, length: int, new_tokens: int) -> None:
    named = reader.get_field("general.architecture")
    if named is None:
        raise InputError(f"{path} names no architecture: give the GGUF file of a model")
    field = reader.get_field(f"{named.contents()}.context_length")
    if field is not None and length + new_tokens > field.contents():
        raise InputError(
            f"{path} has {field.contents():,} positions: {length:,} tokens of a prompt and "
            f"{new_tokens:,} new ones are too many; give smaller --lengths or --new_tokens"
        )


def _run(job: dict[str, Any]) -> dict[str, Times]:
    """Run a job in a new process; returns the times by name."""
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if not lines:
        errors = [line for line in done.stdout.splitlines() if line.startswith(_ERROR)]
        logged = errors or done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"llama.cpp cannot run the files: {logged[-1].strip()[-_MOST_LOGGED:]}")
    found = json.loads(lines[-1].removeprefix(_RESULT))
    return {name: Times(*both) for name, both in found.items()}


def _time(job: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Run a job in this process; returns the seconds of prefills and decoding steps by name."""
    servers = {name: _server(path, job) for name, path in job["files"].items()}
    draw, most = random.Random(0), min(_vocabulary(path) for path in job["files"].values())

    def once(name: str) -> tuple[float, float]:
        prompt = [draw.randrange(most) for _ in range(job["length"])]
        new = {"n_predict": job["new_tokens"], "max_tokens": job["new_tokens"], "ignore_eos": True}
        found = servers[name].handle_completions({"prompt": prompt, "cache_prompt": False, **new})
        if "timings" not in found:
            # On standard error, llama.cpp's log of its end would follow.
            print(_ERROR + str(found.get("error", found)), flush=True)
            raise SystemExit(1)
        times = found["timings"]
        # The prefill gives the first new token.
        return times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3 / (times["predicted_n"] - 1)

    found = timed(servers, once, job["rounds"], job["seconds"])
    return {name: (times.prefill, times.decode) for name, times in found.items()}


def _server(path: str, job: dict[str, Any]) -> Any:
    llama: Any = importlib.import_module("xllamacpp")
    parameters = llama.CommonParams()
    parameters.model.path, parameters.n_parallel, parameters.port = path, 1, 0
    # One slot has room for prompt and new tokens; a prompt is computed in one piece of up to 2,048.
    parameters.n_ctx = -(-(job["length"] + job["new_tokens"] + 8) // 256) * 256
    parameters.warmup = parameters.fit_params = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = job["threads"]
    return llama.Server(parameters)


def _vocabulary(path: str) -> int:
    field: Any = importlib.import_module("gguf").GGUFReader(path).get_field("tokenizer.ggml.tokens")
    return len(field.data)


if __name__ == "__main__":
    print(_RESULT + json.dumps(_time(json.loads(sys.stdin.read()))), flush=True)
