"""A hash of a function's code and of the values that the code reads.

The hash is the same in every process as long as none of these changes. It covers

- the source of the function's module and of all modules that it imports; of installed modules only
  the names;
- defaults, closures, attributes, arguments of a ``partial``, and fields of objects;
- global names that the code uses, with plain values, functions, and objects of classes that are
  not installed.

It does not cover other inputs of the code, such as files and the environment.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from importlib.util import find_spec, resolve_name
from itertools import accumulate, chain
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy
import torch

_ATOMS = (type(None), type(...), type(NotImplemented), bool, float, complex, str, bytes)
_PLAIN = (*_ATOMS, int, list, tuple, dict, set, frozenset, torch.Tensor, numpy.ndarray)


class Incomparable(Exception):  # noqa: N818
    """Raised for a value without comparable state, such as a lock; its message is the type."""


def code_hash(function: Any) -> str:
    """Return the hash of a callable, 16 hexadecimal digits.

    :raises Incomparable: if a value that the code reads has no hash.
    """
    return _Digests().of(function).hex()[:16]


class _Digests:
    """SHA-256 digests of values, each computed from the digests of its parts."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}  # by id
        self._open: list[int] = []  # ids of the values whose parts are being digested
        self._alive: list[Any] = []  # references that keep the ids valid

    def of(self, value: Any) -> bytes:
        """Return the digest of a value."""
        kind, key = type(value).__name__, id(value)
        if type(value) is int:
            return _digest(kind, hex(value))
        if type(value) in _ATOMS:
            return _digest(kind, value if type(value) is bytes else repr(value))
        if key in self._open:
            return _digest("cycle", str(len(self._open) - self._open.index(key)))
        if key not in self._digests:
            self._alive.append(value)
            self._open.append(key)
            try:
                self._digests[key] = _digest(kind, *map(self.of, self._parts(value)))
            except Incomparable:
                raise
            except Exception as error:  # Python cannot copy the value either
                raise Incomparable(kind) from error
            finally:
                self._open.pop()
        return self._digests[key]

    def _parts(self, value: Any) -> Iterator[Any]:
        """Yield the parts of a value, which are simpler values."""
        match value:
            case FunctionType():
                yield from self._function(value)
            case type():
                yield from self._class(value)
            case ModuleType():
                yield from (value.__name__, _sources(value.__name__))
            case CodeType():
                yield from (value.co_code, value.co_names, value.co_consts)
            case torch.Tensor():
                data = value.detach().cpu().contiguous()
                yield from (str(value.dtype), tuple(value.shape))
                yield data.reshape(-1).view(torch.uint8).numpy().tobytes()
            case numpy.ndarray() if not value.dtype.hasobject:
                yield from (value.dtype.str, value.shape, value.tobytes())
            case set() | frozenset():
                yield from sorted(map(self.of, value))
            case list() | tuple() if type(value) in (list, tuple):
                yield from value
            case dict() if type(value) is dict:
                yield from chain.from_iterable(value.items())
            case _:
                yield from self._object(value)

    def _object(self, value: Any) -> Iterator[Any]:
        """Yield what Python copies an object by: its class, arguments and state, or a name."""
        state = value.__reduce_ex__(4)
        yield getattr(value, "__wrapped__", None)
        if isinstance(state, str):
            yield from (getattr(value, "__module__", ""), state)
        else:
            yield from (list(part) if isinstance(part, Iterator) else part for part in state)

    def _function(self, function: FunctionType) -> Iterator[Any]:
        """Yield the name, state and code of a function, and the globals that it uses."""
        module = function.__module__ or ""
        yield from (module, function.__qualname__, vars(function))
        yield from (function.__defaults__, function.__kwdefaults__)
        yield [_content(cell) for cell in function.__closure__ or ()]
        if not _is_own(module):
            return
        sources, code = _sources(module), function.__code__
        yield sources
        # Without a source file, or if several functions share a name, the code identifies it.
        yield code.co_firstlineno if sources and "<" not in function.__qualname__ else code
        for name, value in _globals(function):
            with suppress(Incomparable):  # such as a cache
                yield from (name, self.of(value))

    def _class(self, kind: type) -> Iterator[Any]:
        """Yield the name of a class, and of a user's class the source, bases and attributes."""
        yield from (kind.__module__, kind.__qualname__)
        if not _is_own(kind.__module__):
            return
        yield from (_sources(kind.__module__), kind.__bases__)
        for name, value in sorted(vars(kind).items()):
            given = value.fget if isinstance(value, property) else value
            given = getattr(given, "__func__", given)  # of a class method or static method
            if isinstance(given, FunctionType) or (
                isinstance(given, _PLAIN) and not name.startswith("__")
            ):
                yield from (name, given)


def _globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield names and values that a function may use, in its module and the user's others."""
    names = _names(function.__code__)
    scopes = [function.__globals__]
    for name in sorted(names & scopes[0].keys()):
        value = scopes[0][name]
        if isinstance(value, ModuleType) and _is_own(value.__name__):
            scopes.append(vars(value))
    for scope in scopes:
        for name in sorted(names & scope.keys()):
            value = scope[name]
            kind = type(value).__module__
            if isinstance(value, (*_PLAIN, FunctionType, type)) or _is_own(kind):
                yield name, value


def _digest(kind: str, *parts: str | bytes) -> bytes:
    found = hashlib.sha256(kind.encode())
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        found.update(b"%d:" % len(data) + data)
    return found.digest()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty
        return None


def _names(code: CodeType) -> set[str]:
    """Return the names that code uses, inner functions included."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_own(module: str) -> bool:
    """Whether a module is the user's: not installed, built in or part of this package."""
    if module.partition(".")[0] in {"sos_deap", "builtins"} or module in sys.builtin_module_names:
        return False
    file = _file(module)
    return file is None or not _is_installed(file)


def _is_installed(file: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    return any(file.is_relative_to(folder) for folder in _standard_library())


@cache
def _standard_library() -> list[Path]:
    return [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]


def _file(module: str) -> Path | None:
    """Return the file of a module without importing it, or ``None``."""
    known = sys.modules.get(module)
    if known is not None:
        file = getattr(known, "__file__", None)
        return Path(file).resolve() if file else None
    package, _, last = module.rpartition(".")
    if package:  # not by find_spec, which would import the package
        parent = _file(package)
        if parent is None or parent.name != "__init__.py":
            return None
        paths = (parent.with_name(f"{last}.py"), parent.parent / last / "__init__.py")
        return next((path for path in paths if path.is_file()), None)
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec and spec.has_location and spec.origin else None


def _sources(module: str) -> list[Any]:
    """Return pairs of name and source: of a user's module and the user's modules it imports."""
    found: dict[str, bytes] = {}
    left = [module]
    while left:
        name = left.pop()
        file = _file(name) if _is_own(name) else None
        if name not in found and file is not None and file.is_file():
            found[name] = file.read_bytes()
            known = sys.modules.get(name)
            package = getattr(known, "__package__", None) or (
                name if file.name == "__init__.py" else name.rpartition(".")[0]
            )
            left += _imports(found[name], package)
    return sorted(found.items())


@lru_cache
def _imports(source: bytes, package: str) -> list[str]:
    """Return names that a source imports: of modules, packages, and of objects in modules."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # not Python
        return []
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    # An import also runs the packages that contain the module.
    packages = [list(accumulate(name.split("."), "{}.{}".format)) for name in names]
    return sorted(set(chain.from_iterable(packages)))
