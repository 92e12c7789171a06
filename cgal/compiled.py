"""Functions compiled by numba, all in one way.

`compiled` is for a function that Python calls, `inlined` for one that compiled functions call. Neither takes options:

- The machine code runs without the interpreter's lock.
- Sums may be reordered to fill vector registers, in one and the same way each time; NaN and infinity keep their
  meaning, and a division by zero gives them.
- Arguments are annotated with their shapes, and types are those of the first call (numba's lazy compilation).
- The machine code of a `compiled` function, with all that it calls, is kept on disk: in `NUMBA_CACHE_DIR` if set,
  else in `__pycache__`, else (read-only installs) in the user's cache directory. It is compiled anew when any of its
  sources changes.

Inlining makes a run that compiles give the same bytes as one that finds the machine code on disk: functions that stay
apart are compiled once alone and once within their caller, and the two copies may sum in different orders.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from importlib.util import resolve_name
from inspect import unwrap
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

__all__ = ["compiled", "inlined"]

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


def compiled[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function on its first call, or load its machine code from disk."""
    dispatcher: Any = numba.njit(**OPTIONS)(unwrap(function))
    dispatcher._cache = SourcesCache(dispatcher.py_func)
    fast: Callable[P, R] = dispatcher
    return fast


def inlined[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function into each compiled function that calls it."""
    fast: Callable[P, R] = numba.njit(forceinline=True, **OPTIONS)(unwrap(function))
    return fast


class SourcesCache(FunctionCache):
    """Numba's cache on disk, whose entries are valid for the sources of all modules that their code may come from.

    Numba itself looks at the file of the function alone, but functions and constants of other files are compiled in.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        stamp = sources_hash(function.__module__)
        self._cache_file = IndexDataCacheFile(self.cache_path, self._impl.filename_base, stamp)


@cache
def sources_hash(module: str) -> str:
    """Hash of the sources of a module and of the modules of its package that it imports, directly or through others."""
    package = module.partition(".")[0]
    root = Path(str(sys.modules[package].__file__)).parents[1]
    sources: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source_file(root, name)
        if path is not None and name not in sources:
            sources[name] = path.read_bytes()
            parent = name if path.stem == "__init__" else name.rpartition(".")[0]
            waiting += [other for other in _imports(sources[name], parent) if other.startswith(f"{package}.")]
    return sha256(repr(sorted(sources.items())).encode()).hexdigest()


def _source_file(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Names that may be modules, among all that a source file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
