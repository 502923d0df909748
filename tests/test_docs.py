"""The commands, programs, names, files and links in README.md and docs/ are valid."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sos_deap
from benchmarks.variants import settings as variants
from benchmarks.variants import tables
from benchmarks.variants.statistics import least_pairs
from sos_deap import commands, exporting, prune_command, zero_shot
from sos_deap.__main__ import main
from sos_deap.config import parse
from sos_deap.errors import InputError
from sos_deap.evaluation.priors import PRIORS
from sos_deap.models.genes import KINDS
from sos_deap.models.prune import LAYOUTS
from sos_deap.plan import plan_of
from sos_deap.search.algorithms import ALGORITHMS
from sos_deap.search.choice import CROSSOVERS, MUTATIONS, SELECTIONS
from sos_deap.tasks.objectives import OBJECTIVES
from sos_deap.tasks.registry import TASKS, task_kind
from tests import test_drive

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def shown(program: str) -> list[Any]:
    """The pages' shell lines that run a program, as test parameters."""
    found = []
    for page in PAGES:
        for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
            command, _, comment = line.partition(" #")
            if match := re.match(rf"(?:\S+/)?python -m {re.escape(program)}(?: |$)(.*)", command):
                case = shlex.split(match[1]), "an error" in comment
                found.append(pytest.param(*case, id=f"{page.name}: {command.strip()}"))
    return found


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that the pages show, and a stopped run."""
    files = {
        name: block
        for page in DOCS
        for block in blocks(page, "(?:python|yaml)")
        for name in re.findall(r"^# (\w+\.(?:py|yaml))\n", block)[:1]
    }
    assert {"my_operators.py", "my_metrics.py", "settings.yaml"} <= set(files)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "runs" / "long").mkdir(parents=True)
    (tmp_path / "runs" / "long" / "config.json").write_text(json.dumps({"generations": 20}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in files:
        sys.modules.pop(Path(name).stem, None)


def check_names(arguments: list[str]) -> None:
    """All that a run refuses before it loads the model."""
    config = plan_of(*parse(arguments)).config
    assert task_kind(config.task)
    assert config.layout in LAYOUTS
    assert set(config.genes.split("+")) <= set(KINDS)
    assert config.prior is None or config.prior in PRIORS


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(("arguments", "bad"), shown("sos_deap.run"))
def test_runs_have_flags_and_names_that_exist(
    arguments: list[str], bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not bad:
        with monkeypatch.context() as patch:  # the models on the pages do not exist
            patch.setattr("sos_deap.tasks.registry.kind_of", lambda name: "causal")
            patch.setattr("sos_deap.models.purposes.feed_forward_genes", lambda name: "channels")
            patch.setattr("sos_deap.models.purposes.groups_heads", lambda name: False)
            check_names(arguments)
        return
    with pytest.raises(InputError) as raised:
        check_names(arguments)
    pages = [page.name for page in DOCS if f"error: {raised.value}\n" in page.read_text()]
    assert pages, f"no page shows this error: {raised.value}"


@pytest.mark.parametrize(("arguments", "bad"), shown("sos_deap"))
def test_other_commands_are_read(
    arguments: list[str], bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    for module, names in (
        (commands, ("_measure", "_report")),
        (exporting, ("_export",)),
        (prune_command, ("_prune",)),
        (zero_shot, ("_evaluate",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *given: read.append(given))
    assert main(arguments) == 0
    assert read and not bad


def test_every_other_command_is_shown() -> None:
    assert {case.values[0][0] for case in shown("sos_deap")} >= {
        "prune",
        "measure",
        "eval",
        "export",
        "report",
    }


@pytest.mark.parametrize(("arguments", "bad"), shown("benchmarks.variants"))
def test_comparisons_are_read(arguments: list[str], bad: bool) -> None:
    settings = variants.parse(arguments)
    assert not bad
    # The number of seeds permits a significant difference.
    assert len(settings.seeds) >= least_pairs(tables.comparisons(settings))


def run_program(page: Path, monkeypatch: pytest.MonkeyPatch, short: bool) -> dict[str, Any]:
    """Run the page's Python blocks as one program; if short, with fewer generations and samples."""
    program = "\n".join(block for block in blocks(page, "python") if not block.startswith("# my_"))
    assert program, f"{page} has no Python"
    if short:
        shorter = re.sub(r"\b(ngen|generations)=\d+", r"\1=2", program)
        shorter = shorter.replace(
            'dataset="builtin:pydoc"', 'dataset="builtin:pydoc", samples=2, heldout_samples=8'
        )
        assert shorter != program
        program = shorter
    names: dict[str, Any] = {}
    exec(compile(program, str(page), "exec"), names)  # our own page
    return names


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "tutorial.md"], ids=lambda p: p.name)
def test_programs_run(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_program(page, monkeypatch, short=True)
    assert (workspace / "pruned" / "model.safetensors").is_file()
    assert 0 < names["best"][0].sparsity <= 0.31
    assert names["smaller"].num_parameters() < names["evaluate"].model.num_parameters()


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("name", ["load", "architecture", "task", "operator"])
def test_programs_print_what_the_page_shows(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / f"{name}.md"
    run_program(page, monkeypatch, short=False)
    printed = capsys.readouterr().out
    if name in ("load", "architecture"):  # the output of the others depends on the processor
        assert printed and f"```text\n{printed}```" in page.read_text()


@pytest.mark.usefixtures("workspace")
def test_the_algorithm_that_is_a_generator_runs() -> None:
    """As the same one does that is tested by hand."""
    shown, tested = (
        test_drive.run_driven(f"{module}:annealing,cooling=0.9").population
        for module in ("my_search", "tests.test_drive")
    )
    assert shown == tested


def names_in(page: str, head: str, column: int = 0) -> set[str]:
    """The names in code type in a column of all tables whose first heading is `head`."""
    found: set[str] = set()
    inside = False
    for line in (ROOT / "docs" / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[0] == head)
        if inside and cells[0] != head:
            found |= {name.split(",")[0] for name in re.findall(r"`([^`]+)`", cells[column])}
    return found - {"module:function"}


@pytest.mark.parametrize(
    ("page", "head", "known"),
    [
        ("algorithms.md", "`--algorithm`", ALGORITHMS),
        ("algorithms.md", "importance", PRIORS),
        ("task.md", "`--task`", TASKS),
        ("task.md", "`--objective`", OBJECTIVES),
        ("load.md", "`--layout`", LAYOUTS),
    ],
)
def test_tables_list_all_names(page: str, head: str, known: Any) -> None:
    assert names_in(page, head) == set(known)


def test_the_table_of_operators_lists_all_names() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text()
    for flag, rows in (
        ("crossover", CROSSOVERS),
        ("mutation", MUTATIONS),
        ("selection", SELECTIONS),
    ):
        row = re.search(rf"^\| `--{flag}` \| (.*) \|$", text, re.MULTILINE)
        assert row
        assert {name.split(",")[0] for name in re.findall(r"`([^`]+)`", row[1])} == set(rows)


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "index.rst").read_text()
    documented = re.findall(r"^\.\. auto\w+:: sos_deap\.(\w+)$", text, re.MULTILINE)
    assert sorted(documented) == sos_deap.__all__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    inside = r"`((?:benchmarks|docs|runs|sos_deap|tests)/[\w./-]+)(?: [^`]*)?`"
    named = set(re.findall(inside, prose(page))) - {"runs/long", "runs/my-run"}
    assert not [name for name in named if not (ROOT / name).exists()]


def test_flags_keep_their_hyphens_in_html(tmp_path: Path) -> None:
    """Sphinx turns -- into a dash outside code, and browsers break lines at hyphens."""
    pytest.importorskip("furo")
    for name in ("conf.py", "directives.py"):
        (tmp_path / name).write_text((ROOT / "docs" / name).read_text())
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "pages.css").touch()
    flags = "```{flags} sos_deap.config RunConfig\n```"
    (tmp_path / "index.md").write_text(f"# Title\n\nThe flag --genes, 'quoted'.\n\n{flags}\n")
    build = [sys.executable, "-m", "sphinx", "-W", "-q", ".", "html"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(build, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, check=True)
    html = (tmp_path / "html" / "index.html").read_text()
    assert "The flag --genes, 'quoted'." in html and "\N{EN DASH}" not in html
    assert len(re.findall(r'<span class="pre">--max_sparsity</span>', html)) > 1  # in help, too
    assert not re.search(r"\s--max_sparsity", html)


def test_every_result_file_is_listed() -> None:
    listed = set(re.findall(r"`(\w+\.json)`", prose(ROOT / "docs" / "numbers.md")))
    assert listed == {path.name for path in (ROOT / "benchmarks" / "results").iterdir()}


def test_links_of_the_readme_are_valid() -> None:
    """Sphinx checks the links in docs/."""
    text = README.read_text()
    found = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)
    links = [link or image for link, image in found if ":" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE)
            slugs = {re.sub(r"\W+", "-", heading.lower()).strip("-") for heading in headings}
            assert anchor in slugs, link
    assert {f"docs/{page.name}" for page in DOCS} - {"docs/index.md"} <= {
        link.partition("#")[0] for link in links
    }
