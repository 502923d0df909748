"""Nothing in a user's file is run: checked in the source of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.test_layering import FILES, PICKLERS, ROOT, imports

#: Modules that make code or any object out of bytes.
UNSAFE = PICKLERS | {"_pickle"}

#: Functions that do, whatever module they are called by.
RUNNING = {"eval", "exec", "compile", "__import__", "unsafe_load", "full_load", "load_all"}


def called(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Every call, with the name as written: ``torch.load``."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(call.func), call) for call in calls]


def faults(source: str) -> list[str]:
    """The parts of a source that run what they read."""
    found = []
    for name, call in called(ast.parse(source)):
        *owner, function = name.split(".")
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if not owner and function in RUNNING - {"load_all"}:
            found.append(name)
        if owner and owner[-1] == "yaml" and function in RUNNING | {"unsafe_load_all"}:
            found.append(name)
        if name == "torch.load" or name.endswith("jit.load"):
            found.append(name)
        if name == "yaml.load" and [ast.unparse(one) for one in call.args[1:]] != ["_Loader"]:
            found.append(name)
        if keywords.get("trust_remote_code", "False") != "False":
            found.append(f"{name}(trust_remote_code)")
        if keywords.get("weights_only", "True") != "True":
            found.append(f"{name}(weights_only)")
        if keywords.get("allow_pickle", "False") != "False":
            found.append(f"{name}(allow_pickle)")
        if function == "from_pretrained" and owner[-1:] != ["Evaluator"]:
            found += [f"{name} asks on the terminal"] * ("trust_remote_code" not in keywords)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_read_is_run(path: Path) -> None:
    assert not faults(path.read_text())
    assert not {name.partition(".")[0] for name in imports(path)} & UNSAFE


def test_the_one_loader_of_yaml_is_a_safe_one() -> None:
    from yaml import SafeLoader

    from sos_deap import safe_yaml

    assert issubclass(safe_yaml._Loader, SafeLoader)
    assert safe_yaml._Loader.yaml_constructors == SafeLoader.yaml_constructors


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=given)",
        "AutoModel.from_pretrained(name)",
        "read(name, weights_only=False)",
    ],
)
def test_code_that_would_run_it_is_found(source: str) -> None:
    assert faults(source)
    assert not faults("model.eval(); re.compile(x); json.load(file)")
