"""Searches with workers have the result of searches without, also if workers are lost."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch

from sos_deap import Evaluator, InputError
from sos_deap.cli import Interrupted, graceful_interrupt
from sos_deap.engines import check_engine, setup, worker
from sos_deap.engines.attach import open_engine
from sos_deap.engines.launch import _Run
from sos_deap.engines.pool import _cut
from sos_deap.engines.process import Processes
from sos_deap.errors import WorkerLostError
from sos_deap.evaluation import evaluator as evaluators
from sos_deap.evaluation.evaluator import from_recipe
from sos_deap.run import main
from tests.conftest import GENES
from tests.test_resume import known
from tests.test_run import read

ROOT = Path(__file__).parents[1]

# A metric that differs between sub-models; and one that kills its worker if a file exists.
METRICS = """
import os, pathlib, signal, sys, threading, time, torch

# The hash of these must be the same in every process.
LOCK, KINDS = threading.Lock(), {"logits", "hidden", "states"}

def spread(model, tokenizer, rows):
    assert KINDS and LOCK
    with torch.inference_mode():
        return float(model(torch.arange(16)[None]).logits.std())

def deadly(model, tokenizer, rows):
    mark = pathlib.Path("die")
    if mark.exists() and os.environ.get("ORIGIN") != str(os.getpid()):
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return spread(model, tokenizer, rows)

def slow(model, tokenizer, rows):
    time.sleep(0.1)
    return spread(model, tokenizer, rows)

def noisy(model, tokenizer, rows):
    print("noise")
    os.write(1, b"noise, as from C\\n")
    return spread(model, tokenizer, rows)

def ends(model, tokenizer, rows):
    if os.environ.get("ORIGIN") != str(os.getpid()):
        sys.exit(0)
    return noisy(model, tokenizer, rows)

def cxEnds(a, b):
    sys.exit(0)

# The timings of a run and its page take seconds and are not tested here.
def run(arguments):
    import sos_deap.finish, sos_deap.report.page, sos_deap.run
    sos_deap.finish.measured = lambda models, seqlen, seconds: []
    sos_deap.report.page.write_page = lambda folder: folder / "report.html"
    os.environ["ORIGIN"] = str(os.getpid())  # the run itself, which is not killed
    return sos_deap.run.main(arguments)

# A whole run, and then one whose metric ends its process.
def run_twice(arguments):
    assert run([*arguments, "--quiet", "--output_dir=scoop"]) == 0
    own = ["--task=metrics_of_mine:ends", "--objective=metric"]
    return run([*arguments, *own, "--json_lines", "--output_dir=bad"])
"""


@pytest.fixture
def flags(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Of a run of a second, in a folder with the metrics above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORIGIN", str(os.getpid()))
    Path("metrics_of_mine.py").write_text(METRICS)
    given = {
        "model": model_folder,
        "dataset": text_file,
        "population_size": 6,
        "generations": 4,
        "samples": 4,
        "seqlen": 32,
        "heldout_samples": 2,
        "mutation_rate": 0.1,
        "dtype": "float32",
    }
    return [f"--{name}={value}" for name, value in given.items()]


def own(task: str) -> list[str]:
    return [f"--task=metrics_of_mine:{task}", "--objective=metric"]


def outcome(folder: Path | str) -> Any:
    """The result without the command, which names the engine."""
    return {**known(read(Path(folder))), "command": None}


def under_scoop(*arguments: str, target: str = "run") -> list[str]:
    """The command of a process that runs the launcher."""
    code = (
        "import os, sys; from sos_deap.engines.launch import launch; "
        f"sys.exit(launch('metrics_of_mine:{target}', sys.argv[1:], 2, os.environ.get('HOSTFILE')))"
    )
    return [sys.executable, "-c", code, "--engine=scoop", *arguments]


def ran(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; returns its status and output."""
    return subprocess.run(
        command, timeout=240, capture_output=True, text=True, cwd=cwd, check=False
    )


class Now(Executor):
    """An executor that runs everything immediately, in this process."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        self.given.append(args)
        random.random()  # as some do
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def made(model_folder: Path, text_file: Path) -> Callable[[], Evaluator]:
    def make() -> Evaluator:
        return Evaluator.from_pretrained(
            str(model_folder),
            dataset=str(text_file),
            samples=4,
            seqlen=16,
            dtype="float32",
            max_sparsity=1,
        )

    return make


def several(count: int) -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randint(0, 1) for _ in range(GENES)] for _ in range(count)]


def test_parts_are_whole_in_order_and_of_one_size() -> None:
    for count in range(200):
        for workers in (1, 2, 3, 7):
            keys = [bytes([i]) for i in range(count)]
            parts = _cut(keys, workers)
            assert [key for part in parts for key in part] == keys
            sizes = [len(part) for part in parts]
            assert not sizes or max(sizes) <= min(32, -(-count // workers))
            assert len(sizes) == count or max(sizes, default=0) - min(sizes, default=0) <= 1


def test_the_same_from_an_executor_and_counted_once(made: Callable[[], Evaluator]) -> None:
    alone, spread, executor = made(), made(), Now()
    open_engine(spread, executor, 3)
    chromosomes = several(10)
    state = random.getstate()
    assert spread.many(chromosomes) == alone.many(chromosomes)
    assert random.getstate() == state
    assert [len(given[2]) for given in executor.given] == [3, 4, 3]
    a, b = alone.accounting, spread.accounting
    assert (a.forward_evaluations, a.tokens, a.layers) == (
        b.forward_evaluations,
        b.tokens,
        b.layers,
    )
    # In parts: layers that sub-models of two parts share are computed twice.
    assert a.layers_computed <= b.layers_computed <= b.layers
    assert (a.flops or 0) <= (b.flops or 0) < 3 * (a.flops or 0)
    spread.many(chromosomes)
    assert len(executor.given) == 3  # all known
    spread.close_engine()
    spread.many(several(12))
    assert len(executor.given) == 3


class Broken(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("A process was terminated abruptly"))
        return future


def test_a_lost_worker_is_reported(made: Callable[[], Evaluator]) -> None:
    evaluator = made()
    open_engine(evaluator, Broken(), 2)
    with pytest.raises(WorkerLostError, match="a worker was lost, out of memory perhaps"):
        evaluator.many(several(4))
    assert issubclass(BrokenProcessPool, BrokenExecutor)


class Silent(Executor):
    """An executor that never answers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        return Future()


def test_a_wait_for_workers_ends(
    made: Callable[[], Evaluator], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sos_deap.engines.pool._SILENCE", 0.5)
    monkeypatch.setattr("sos_deap.engines.pool._SILENCE_AFTER_SIGNAL", 1.5)
    evaluator = made()
    open_engine(evaluator, Silent(), 2)
    interrupt = Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(Interrupted), graceful_interrupt():
        evaluator.many(several(4))
    interrupt.join()
    printed = capsys.readouterr().err
    assert "no answer from 2 of 2 workers for " in printed
    assert "finishing the current computation" in printed


def test_an_executor_that_is_shut_down(made: Callable[[], Evaluator]) -> None:
    evaluator, executor = made(), ThreadPoolExecutor(1)
    executor.shutdown()
    open_engine(evaluator, executor, 1)
    with pytest.raises(WorkerLostError, match="accept no more work: cannot schedule new futures"):
        evaluator.many(several(2))
    evaluator.close_engine()
    evaluator.close_engine()


def test_signals_to_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sos_deap.engines.process._TO_GO", 1.0)
    engine, others = Processes(1), set(active_children())
    answer = engine.submit(len, b"ab")
    [child] = set(active_children()) - others
    os.kill(child.pid or 0, signal.SIGINT)  # as a terminal does to all, while it starts
    assert answer.result(timeout=120) == 2
    os.kill(child.pid or 0, signal.SIGSTOP)
    engine.close()
    engine.close()
    assert not child.is_alive()


def test_a_worker_of_scoop_that_is_lost_before_it_has_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGQUIT)  # SCOOP takes it
    from sos_deap.engines import scoop_start

    signal.signal(signal.SIGQUIT, before)
    started: list[subprocess.Popen[bytes]] = []

    def idle(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "60"]))
        if len(started) == 2:
            started[-1].kill()
        return started[-1]

    monkeypatch.setattr(scoop_start, "Popen", idle)
    monkeypatch.setattr(sys, "argv", ["scoop_start", "3", "--origin", "program", "--origin"])
    assert scoop_start._host("/nowhere") == 1
    assert [process.wait() for process in started] == [-15, -9, -15]


def test_evaluators_that_cannot_be_sent(
    evaluator: Evaluator, made: Callable[[], Evaluator]
) -> None:
    with pytest.raises(InputError, match="has a model or a task in memory"):
        open_engine(evaluator, "process", 2)
    with pytest.raises(InputError, match="has a model or a task in memory"):
        pickle.dumps(evaluator)
    open_engine(evaluator, "serial")
    with pytest.raises(InputError, match="programs that SCOOP has started"):
        open_engine(made(), "scoop", 2)


def test_a_worker_with_other_data_is_refused(
    made: Callable[[], Evaluator], text_file: Path, tmp_path: Path
) -> None:
    recipe = json.loads(made().recipe)
    other = tmp_path / text_file.name
    other.write_text(text_file.read_text().replace("tree", "list"))
    recipe["dataset"] = str(other)
    with pytest.raises(InputError, match="has another model or other data than this process"):
        from_recipe(json.dumps(recipe))


class OddError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(OddError("a", "b"), RuntimeError), (KeyError("a"), KeyError), (InputError("a"), InputError)],
)
def test_an_error_in_a_worker_is_raised_in_this_process(
    made: Callable[[], Evaluator],
    error: Exception,
    kind: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    evaluator = made()
    recipe = evaluator.recipe
    monkeypatch.setitem(evaluators._local, recipe, evaluator)
    monkeypatch.setattr(evaluator.task, "score", broken)
    with pytest.raises(kind, match="OddError: a b" if kind is RuntimeError else "a") as caught:
        worker.sums(recipe, 1, [bytes([1] * GENES)], (0, 4))
    assert type(pickle.loads(pickle.dumps(caught.value))) is kind


def test_an_evaluator_is_sent_as_a_recipe(made: Callable[[], Evaluator]) -> None:
    evaluator = made()
    data = pickle.dumps(evaluator)
    assert len(data) < 2000  # and no weights
    threads = torch.get_num_threads()
    there = pickle.loads(data)
    assert torch.get_num_threads() == threads  # the process is its owner's
    assert there.model is pickle.loads(data).model  # once a process
    assert there.many(several(3)) == evaluator.many(several(3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("proces", None), "unknown engine 'proces': did you mean 'process'?"),
        (("process", 0), "workers is 0: give at least 1"),
        (("process", 10**9), "workers is 1000000000: give at most 1024"),
        (("serial", 3), "workers is 3, and the engine serial is one process"),
        (("process", 2, "hosts"), "the engine process takes no hostfile"),
    ],
)
def test_bad_settings(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        check_engine(*given)


def test_a_hostfile_begins_with_this_machine(flags: list[str], capsys: Any) -> None:
    assert main([*flags, "--engine=scoop", "--workers=2", "--hostfile=nowhere"]) == 2
    assert "hostfile nowhere cannot be read ([Errno 2] No such file" in capsys.readouterr().err
    Path("hosts").write_text("192.0.2.1 2\nlocalhost 2\n")
    assert main([*flags, "--engine=scoop", "--workers=2", "--hostfile=hosts"]) == 2
    assert "begins with 192.0.2.1, which is not this machine" in capsys.readouterr().err


def test_workers_have_the_same_result(flags: list[str]) -> None:
    assert main([*flags, "--output_dir=alone"]) == 0
    assert main([*flags, "--output_dir=process", "--engine=process", "--workers=2"]) == 0
    ended = ran(under_scoop(*flags, target="run_twice"))
    for engine in ("process", "scoop"):
        assert outcome(engine) == outcome("alone")
    # The status of bad input is returned, and nothing is printed but JSON lines.
    assert ended.returncode == 2
    [printed] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert printed.startswith(
        "error: the metric ends raised SystemExit: 0 (metrics_of_mine.py, line "
    )
    assert json.loads(ended.stdout)["event"] == "run"  # and nothing else on any line


@pytest.mark.usefixtures("copied_workers")
def test_a_killed_process_ends_the_run_which_can_be_resumed(flags: list[str], capsys: Any) -> None:
    flags += own("deadly")
    assert main([*flags, "--output_dir=alone"]) == 0
    Path("die").touch()
    assert main([*flags, "--output_dir=run", "--engine=process", "--workers=2"]) == 1
    [printed] = capsys.readouterr().err.splitlines()
    assert "a worker was lost" in printed and "--resume run" in printed
    assert not Path("die").exists()
    assert main(["--resume=run", "--engine=serial", "--workers=1"]) == 0
    assert outcome("run") == outcome("alone")


def test_a_killed_actor_of_ray_costs_nothing(flags: list[str]) -> None:
    flags += own("deadly")
    assert main([*flags, "--output_dir=alone"]) == 0
    Path("die").touch()
    # In a process of its own: Ray would leave threads and warnings in this one.
    code = "import metrics_of_mine as m, sys; sys.exit(m.run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *flags, "--engine=ray", "--workers=2"]
    assert ran([*command, "--output_dir=run"]).returncode == 0
    assert not Path("die").exists()
    assert outcome("run") == outcome("alone")


def test_a_killed_worker_of_scoop_ends_the_run_which_can_be_resumed(flags: list[str]) -> None:
    flags += own("deadly")
    assert main([*flags, "--output_dir=alone"]) == 0
    Path("die").touch()
    ended = ran(under_scoop(*flags, "--output_dir=run"))
    assert ended.returncode == 1
    assert "a process of the engine scoop" in ended.stderr and "was lost" in ended.stderr
    assert not Path("die").exists()
    assert not processes_of(Path.cwd())
    assert main(["--resume=run", "--engine=serial", "--workers=1"]) == 0
    assert outcome("run") == outcome("alone")


@pytest.fixture
def started(flags: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A long run under SCOOP that has begun to compute."""
    command = under_scoop(*flags, *own("slow"), "--generations=500", "--output_dir=run")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal, until = Path("run/journal.jsonl"), time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def test_scoop_ends_in_time_with_the_true_status(started: subprocess.Popen[str]) -> None:
    # On one machine no other user can connect: no port is open, and the folder is private.
    pids = [started.pid, *processes_of(Path.cwd())]
    assert len(pids) > 4 and listening(pids) == (set(), {"broker", "line", "worker"})
    started.send_signal(signal.SIGTERM)
    _, printed = started.communicate(timeout=60)
    assert started.returncode == 128 + signal.SIGTERM
    assert "to resume: python -m sos_deap.run --resume run" in printed
    assert not processes_of(Path.cwd())
    assert not Path("run/result.json").exists()


@pytest.fixture
def hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").write_text("127.0.0.2 2\n")
    monkeypatch.setenv("HOSTFILE", str(tmp_path / "hosts"))


def test_a_killed_launcher_leaves_no_orphan(hostfile: None, started: subprocess.Popen[str]) -> None:
    # With a hostfile, at the address that it names and no other.
    ports, files = listening([started.pid, *processes_of(Path.cwd())])
    assert ports == {"127.0.0.2"} and not files
    started.kill()
    started.wait()
    until = time.monotonic() + 30
    while processes_of(Path.cwd()):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff\xfe origin x\nstatus 0\n"]
)
def test_a_connection_without_the_token_is_closed(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Idle(subprocess.Popen[bytes]):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(["sleep", "60"], start_new_session=True)

    monkeypatch.setattr("sos_deap.engines.launch.subprocess.Popen", Idle)
    run = _Run("nothing:here", [], 2, None)
    try:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(run._listener.getsockname())
            stranger.sendall(said)
            run._accept()
            [line] = run._lines
            run._hear(line)
            assert not run._lines and run._status is None
            assert stranger.recv(1) == b""
    finally:
        run.end()


@pytest.mark.usefixtures("copied_workers")
def test_what_a_metric_raises_in_a_process(flags: list[str], capsys: Any) -> None:
    assert main([*flags, *own("ends"), "--engine=process", "--workers=1"]) == 2
    assert "error: the metric ends raised SystemExit: 0" in capsys.readouterr().err


def test_json_lines_are_the_only_output(flags: list[str], capfd: Any) -> None:
    few = ["--generations=1", "--json_lines"]
    assert main([*flags, *own("noisy"), *few]) == 0
    events = [json.loads(line)["event"] for line in capfd.readouterr().out.splitlines()]
    assert events == ["run", "generation", "generation", "result"]
    assert main([*flags, *few, "--crossover=metrics_of_mine:cxEnds"]) == 2
    printed = capfd.readouterr()
    assert "error: a user function called sys.exit(0)\n" in printed.err
    print("and now again here")
    assert capfd.readouterr().out == "and now again here\n"


def test_scripts_of_deap_under_plain_scoop(
    model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    # SCOOP's map, one individual at a time; the evaluator is sent as a recipe. Then the example.
    script = tmp_path / "mine.py"
    script.write_text(f"""
import random, runpy, torch, sos_deap
from deap import algorithms, base, tools
from scoop import futures

def main(spread):
    random.seed(0)
    evaluate = sos_deap.Evaluator.from_pretrained(
        {str(model_folder)!r}, dataset={str(text_file)!r}, samples=4, seqlen=16, dtype="float32")
    toolbox, best = base.Toolbox(), tools.HallOfFame(1)
    sos_deap.register(toolbox, evaluate)
    if spread == "map":
        toolbox.register("map", futures.map)
    else:
        sos_deap.open_engine(evaluate, spread)
    individuals = toolbox.population(n=6)
    algorithms.eaSimple(individuals, toolbox, 0.9, 1.0, 3, halloffame=best, verbose=False)
    return list(best[0]), best[0].fitness.values

if __name__ == "__main__":
    torch.set_num_threads(1)
    found = [main(spread) for spread in ("serial", "map", "scoop")]
    print("equal", found[0] == found[1] == found[2])
    runpy.run_path({str(ROOT / "examples" / "deap_scoop.py")!r}, run_name="__main__")
""")
    ended = ran([sys.executable, "-m", "scoop", "-q", "-n", "2", str(script)])
    assert "equal True" in ended.stdout, ended.stderr
    assert "perplexity" in ended.stdout and "of 144 heads" in ended.stdout, ended.stderr


def processes_of(folder: Path) -> list[int]:
    """Other processes in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "cwd").resolve() == folder
            if inside and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def listening(pids: list[int]) -> tuple[set[str], set[str]]:
    """Addresses on which processes listen, and what their listening files are for."""
    sockets = set()
    for fd in (fd for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(OSError):  # closed in the meantime
            sockets.add(str(fd.readlink()).removeprefix("socket:[").rstrip("]"))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for row in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
            if row[3] == "0A" and row[9] in sockets:  # LISTEN
                words = bytes.fromhex(row[1].partition(":")[0])  # in the order of the processor
                last = words[-4:] if sys.byteorder == "big" else words[-4:][::-1]
                addresses.add(".".join(map(str, last)))
    files = set()
    for row in map(str.split, Path("/proc/net/unix").read_text().splitlines()[1:]):
        if row[6:7] and row[6] in sockets and row[3] == "00010000" and len(row) > 7:
            path = Path(row[7])
            top = path.parent if path.name == "line" else path.parents[1]
            assert top.stat().st_mode & 0o777 == 0o700
            port = path.name.removeprefix(":")
            files.add("line" if port == "line" else "worker" if int(port) > 49151 else "broker")
    return addresses, files


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(setup, "_configured", [])
    setup.configure_process(3)
    assert torch.get_num_threads() == 2 and setup.is_configured()
    torch.set_num_threads(before)
