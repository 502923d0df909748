"""Devices and dtypes: check those that the user gives, and name the processor."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from sos_deap.errors import InputError, unknown

#: Dtypes by the name the user gives; ``None`` is the default of the device.
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def checked_device(device: str) -> torch.device:
    """Return a device after a test that this machine has it.

    :param device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    :raises InputError: if this machine does not have the device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=device).item()  # fails on the device meta, too: it has no values
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        mps = ["mps"] if torch.backends.mps.is_available() else []
        have = ", ".join(["cpu", *cuda, *mps])
        raise InputError(f"device {device!r} is not available: this machine has {have}") from error


def device_name(device: torch.device) -> str:
    """Return the name of a device's processor, such as ``"NVIDIA H100"``.

    :param device: the device; the number of a GPU does not count.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def cpu_dtype() -> torch.dtype:
    """Return the default dtype on this CPU: bfloat16 if its hardware supports it, else float32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    has = able.get("amx_bf16") or able.get("avx512_bf16")
    return torch.bfloat16 if has else torch.float32


def checked_dtype(dtype: str) -> torch.dtype | None:
    """Return a torch dtype by name.

    :param dtype: a key of :data:`DTYPES`.
    :returns: the dtype; ``None`` for ``"auto"``.
    :raises InputError: for an unknown name.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return DTYPES[dtype]
