"""Large packages of which cgal needs a small part: it is imported without the rest.

`schnetpack.nn` takes 1 s, all that schnetpack's `__init__` imports beside it (data sets, trainers, molecular dynamics)
5 s more; deeptime and POT are alike. For others in the process nothing changes but the time: whatever they ask of the
package is imported then, and there is one copy of each module and class.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from threading import RLock
from typing import Any

__all__ = ["defer"]


def defer(package: str) -> None:
    """Let `import package.part` import that part alone, unless the package has been imported already.

    Its `__init__` runs when it is first asked for a name that is none of its modules (PEP 562, as in the recipe for
    lazy imports in Python's documentation of importlib, whose `LazyLoader` also runs it for `import package.part`).
    """
    if package in sys.modules:
        return
    spec = find_spec(package)
    assert spec is not None
    assert spec.loader is not None
    module, loader, lock, started = module_from_spec(spec), spec.loader, RLock(), False

    def missing(name: str) -> Any:
        nonlocal started
        part = f"{package}.{name}"
        if not name.startswith("_") and (part in sys.modules or find_spec(part)):
            return import_module(part)
        with lock:
            if not started:
                started = True
                loader.exec_module(module)
            if name not in vars(module):
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            return vars(module)[name]

    vars(module)["__getattr__"] = missing
    sys.modules.setdefault(package, module)
