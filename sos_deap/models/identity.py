"""Tell models apart: a chromosome fits the weights it was found for, and no others."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

_SAMPLES = 64  # values of each tensor that count


def fingerprint(model: Any) -> str:
    """A short hash of a model's architecture and of values from each of its weights.

    The weights count as they are stored: a model that was rounded to another dtype is another one.
    """
    found = hashlib.sha256(str(model.config.model_type).encode())
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // _SAMPLES)].to("cpu", torch.float32)
        found.update(f"{name}{tuple(parameter.shape)}".encode())
        found.update(sample.numpy().tobytes())
    return found.hexdigest()[:16]
