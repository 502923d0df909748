from __future__ import annotations

import math
import re
import sys
import threading
from copy import deepcopy
from functools import lru_cache, partial
from importlib import invalidate_caches
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy
import pytest
import torch

from sos_deap import Evaluator, InputError, prune
from sos_deap.tasks.code import code_hash
from sos_deap.tasks.custom import CallableTask
from sos_deap.user_function import user_function
from tests.conftest import GENES, small_llama

IDS = torch.arange(12)[None]


def first_logit(model: Any) -> Any:
    with torch.inference_mode():
        return model(IDS).logits[0, -1, 0]


def test_any_function_of_a_model_is_a_metric() -> None:
    evaluator = Evaluator(small_llama(), first_logit, "metric", max_sparsity=1)
    several = [[1] * GENES, [0] * GENES, [1, 0, 1] * 4]
    expected = [float(first_logit(prune(evaluator.model, genes))) for genes in several]
    assert evaluator.metrics(several) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert evaluator(several[2]) == pytest.approx((expected[2],), rel=1e-4, abs=1e-6)
    assert evaluator.task.name == "first_logit"
    described = evaluator.task.describe()
    assert set(described) == {"split", "code_hash"} and described["split"] == "its own"
    other = Evaluator(small_llama(), lambda model: 1.0)
    assert other.task.describe()["code_hash"] != described["code_hash"]
    assert evaluator.accounting.forward_evaluations == 3


def test_a_function_states_whether_lower_is_better() -> None:
    def loss(model: Any) -> float:
        return 2.0

    assert Evaluator(small_llama(), loss, "metric")([1] * GENES) == (2.0,)
    loss.greater_is_better = False  # type: ignore[attr-defined]
    assert Evaluator(small_llama(), loss, "metric")([1] * GENES) == (-2.0,)


@pytest.mark.parametrize("value", ["0.5", None, [1.0], torch.zeros(2), 1j])
def test_values_that_are_not_numbers_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match="returned .*: expected a number"):
        Evaluator(small_llama(), lambda model: value).metric([1] * GENES)


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("\x1b[31mno\nsecond line"), "ValueError:  \\[31mno"),
        (KeyError("x"), "KeyError: 'x'"),
        (RecursionError(), "RecursionError"),
        (StopIteration(), "StopIteration"),
        (GeneratorExit(), "GeneratorExit"),
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (SystemExit(0), "SystemExit: 0"),
        (InputError("no"), "InputError: no"),
        (OSError(28, "No space left"), r"OSError: \[Errno 28\] No space left"),
        (SilentError(), "SilentError"),
    ],
)
def test_what_a_function_raises_is_one_line(error: BaseException, words: str) -> None:
    def mine(model: Any) -> float:
        raise error

    line = mine.__code__.co_firstlineno + 1
    with pytest.raises(InputError) as caught:
        Evaluator(small_llama(), mine).metric([1] * GENES)
    assert str(caught.value).isprintable()
    expected = rf"the metric mine raised {words} \(test_custom.py, line {line}\)"
    assert re.fullmatch(expected, str(caught.value)), str(caught.value)


def test_a_number_too_large_and_an_interrupt() -> None:
    with pytest.raises(InputError, match="raised OverflowError: int too large"):
        Evaluator(small_llama(), lambda model: 10**400).metric([1] * GENES)

    def interrupted(model: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Evaluator(small_llama(), interrupted).metric([1] * GENES)


def test_nan_is_the_worst() -> None:
    evaluator = Evaluator(small_llama(), lambda model: math.nan)
    assert evaluator([1] * GENES)[0] < -1e29


FACTOR = 1.0


def scaled(model: Any, k: float = 1.0) -> float:
    return k * FACTOR


class Scaled:
    def __init__(self, k: float, **more: Any) -> None:
        self.k, self.more = k, more

    def __call__(self, model: Any) -> float:
        return self.k

    def times(self, model: Any, j: int = 1) -> float:
        return self.k * j


def closure(k: Any) -> Any:
    return lambda model: k


def same_line() -> list[Any]:
    return [lambda model: 1.0 + model.x, lambda model: model.x - 1.0]


DIFFERENT: dict[str, Any] = {
    "function": scaled,
    "partial": partial(scaled, k=2.0),
    "partial of 3": partial(scaled, k=3.0),
    "partial of a partial": partial(partial(scaled, k=2.0), k=3.5),
    "object": Scaled(1.0),
    "of 2": Scaled(2.0),
    "with a set": Scaled(1.0, a={"x", "y", "z"}),
    "with another": Scaled(1.0, a={"x", "y", "w"}),
    "with a tensor": Scaled(1.0, a=torch.arange(3)),
    "of floats": Scaled(1.0, a=torch.arange(3.0)),
    "with a module": Scaled(1.0, a=torch.nn.Linear(2, 2, device="meta").to_empty(device="cpu")),
    "with an array": Scaled(1.0, a=numpy.arange(3)),
    "with a path": Scaled(1.0, a=Path("x")),
    "with another path": Scaled(1.0, a=Path("y")),
    "method": Scaled(1.0).times,
    "method of 2": Scaled(2.0).times,
    "partial of a method": partial(Scaled(2.0).times, j=2),
    "closure": closure(1.0),
    "over 2": closure(2),
    "over a huge number": closure(10**5000),
    "over a closure": closure(closure(1.0)),
    "over another": closure(closure(2.0)),
    "first": same_line()[0],
    "second": same_line()[1],
    "decorated": torch.no_grad()(closure(1.0)),
    "decorated, over 2": torch.no_grad()(closure(2.0)),
    "cached": lru_cache(scaled),
    "built in": len,
    "library": math.fsum,
}


def test_different_functions_have_different_hashes() -> None:
    hashes = {name: code_hash(given) for name, given in DIFFERENT.items()}
    assert len(set(hashes.values())) == len(hashes)
    loop = Scaled(1.0)
    loop.more["self"] = loop
    for given in (*DIFFERENT.values(), loop):
        if not isinstance(given, FunctionType | type(lru_cache(scaled))):
            assert code_hash(deepcopy(given)) == code_hash(given)  # whatever its ids are


def test_a_changed_global_has_another_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_hash(scaled)
    monkeypatch.setattr("tests.test_custom.FACTOR", 2.0)
    assert code_hash(scaled) != before
    monkeypatch.setattr("tests.test_custom.FACTOR", 1.0)
    assert code_hash(scaled) == before


def test_a_store_distinguishes_partials(tmp_path: Path) -> None:
    for k in (2.0, 3.0, 2.0):
        evaluator = Evaluator(small_llama(), partial(scaled, k=k))
        evaluator.open_store(tmp_path / "store")
        assert evaluator.metric([1] * GENES) == k
        evaluator.close_store()
    assert evaluator.accounting.store_hits == 1


def test_functions_without_a_hash_share_no_evaluations() -> None:
    hashes = set()
    for _ in range(2):
        with pytest.warns(UserWarning, match="metric Scaled holds a lock, which cannot be compar"):
            task = CallableTask(Scaled(1.0, a=threading.Lock()))
        assert task.describe() == task.describe()
        hashes.add(task.describe()["code_hash"])
    assert len(hashes) == 2


MODULES = {
    "my_main.py": """
import json, threading
import my_package.deep
from my_aid import *

LOCK, SEEN = threading.Lock(), {}
K = 1

def metric(model):
    with LOCK:
        from my_late import late
        SEEN[len(SEEN)] = late
        return K

def other(model):
    return 2
""",
    "my_aid.py": "J = 1\n",
    "my_late.py": "import my_later\nlate = 1\n",
    "my_later.py": "",
    "my_package/__init__.py": "",
    "my_package/deep.py": "from . import deeper\n",
    "my_package/deeper.py": "",
    "my_unused.py": "",
}


def test_the_hash_covers_the_modules_that_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)

    def hashed(name: str = "metric") -> str:
        for module in [module for module in sys.modules if module.startswith("my_")]:
            del sys.modules[module]
        invalidate_caches()
        return code_hash(user_function(f"my_main:{name}"))

    for name, source in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    before = hashed()
    assert before == hashed() != hashed("other")
    for name, source in MODULES.items():
        (tmp_path / name).write_text(source + "ADDED = 1\n")
        assert (hashed() == before) == (name == "my_unused.py"), name
        (tmp_path / name).write_text(source)
    assert hashed() == before
    metric = user_function("my_main:metric")
    metric(None)
    monkeypatch.setattr("my_main.K", 2)
    assert code_hash(metric) != before


def test_functions_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "my_metrics.py").write_text("def mine(model, tokenizer, rows): return len(rows)\n")
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    (tmp_path / "my_end.py").write_text("import sys; sys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    assert user_function("my_metrics:mine")(None, None, [1, 2]) == 2
    with pytest.raises(InputError, match="unknown function in my_metrics 'mien': did you mean 'm"):
        user_function("my_metrics:mien")
    with pytest.raises(InputError, match="cannot import my_broken of my_broken:x: division"):
        user_function("my_broken:x")
    with pytest.raises(InputError, match="cannot import my_end of my_end:x: SystemExit: 0"):
        user_function("my_end:x")
    with pytest.raises(InputError, match="cannot import my_nothing of my_nothing:x: No module"):
        user_function("my_nothing:x")


def test_a_function_on_the_rows_of_a_data_set(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "q{i}", "answer": {i}}}\n' for i in range(10)))
    seen = []

    def metric(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
        assert tokenizer("the")["input_ids"]
        seen.append([row["answer"] for row in rows])
        return float(first_logit(model))

    evaluator = Evaluator.from_pretrained(
        str(model_folder), dataset=str(path), task=metric, samples=3, device="cpu"
    )
    evaluator.metric([1] * GENES)
    heldout: Any = evaluator.heldout
    evaluator.metric_of(evaluator.model, heldout)
    calibration, held_out = seen
    assert len(set(calibration)) == 3 and set(calibration) <= set(range(5))
    assert held_out == [5, 6, 7, 8, 9]
    described = evaluator.task.describe()
    assert (described["split"], described["rows"]) == ("first half of rows.jsonl", 3)
    assert described["row_hash"] != heldout.describe()["row_hash"]
    assert isinstance(heldout, CallableTask)
