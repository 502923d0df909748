"""llama.cpp in a process of its own, to compare a GGUF file with its model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

STEPS = 8

# In a separate process, since llama.cpp calls abort() on unexpected input. Keys and values are in
# float32 and flash attention is off, so that values agree to 1e-4.
SERVE = """
import json, os, sys, urllib.request
import xllamacpp as x

path, size, steps, texts, prompts = json.loads(sys.stdin.read())
params = x.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = path, 128, 1, 0
params.warmup = params.fit_params = False
params.cpuparams.n_threads = 1
params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = x.Server(params)

def ask(where, **content):
    body = json.dumps(content).encode()
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + where, body, header)
    return json.loads(urllib.request.urlopen(request).read())

def complete(prompt, count, probabilities=0):
    return ask("/completion", prompt=prompt, n_predict=count, n_probs=probabilities,
               temperature=0.0, return_tokens=True, cache_prompt=False)

def tokenize(text):
    return ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

tokens = [tokenize(text) for text in texts]
greedy = [complete(prompt, steps)["tokens"] for prompt in prompts]
first = [complete(prompt, 1, size)["completion_probabilities"][0] for prompt in prompts]
logprobs = [{one["id"]: one["logprob"] for one in step["top_logprobs"]} for step in first]
print("RESULT", json.dumps([tokens, greedy, logprobs]), flush=True)
os._exit(0)
"""


def llama_cpp(
    path: Path, size: int, texts: Sequence[str] = (), prompts: Sequence[list[int]] = ()
) -> tuple[list[list[int]], list[list[int]], list[dict[str, float]]]:
    """The tokens of texts, and the greedy continuations and next-token logprobs of prompts."""
    job = json.dumps([str(path), size, STEPS, texts, prompts])
    done = subprocess.run(
        [sys.executable, "-c", SERVE],
        input=job,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, f"exit status {done.returncode}: {done.stderr[-3000:]}"
    tokens, greedy, logprobs = json.loads(lines[0].removeprefix("RESULT "))
    return tokens, greedy, logprobs


def architecture(path: Path) -> str:
    import gguf

    field: Any = gguf.GGUFReader(path).get_field("general.architecture")
    return str(field.contents())


def check_numbers(model: Any, path: Path, prompts: list[list[int]], tolerance: float) -> None:
    """Compare a file with its model: greedy tokens, and the logprobs of all tokens."""
    model = model.float()
    size = model.config.vocab_size
    _, greedy, logprobs = llama_cpp(path, size, prompts=prompts)
    for prompt, continued, found in zip(prompts, greedy, logprobs, strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt])
            expected = model(ids).logits[0, -1].log_softmax(-1)
            out = model.generate(ids, do_sample=False, max_new_tokens=STEPS, pad_token_id=0)
        actual = torch.tensor([found[str(token)] for token in range(size)])
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
        assert continued == out[0, len(prompt) :].tolist()
