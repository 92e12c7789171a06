"""Run every subject, each in a process of its own, and write results.json and the table in README.md."""

import json
import platform
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks.harness import Result
from cgal.files import write_text

HERE = Path(__file__).parent
SUBJECTS = (
    "cg_md",
    "growth",
    "training",
    "oracle",
    "picks",
    "water",
    "labels",
    "selection",
    "benchmark_stage",
    "numerics",
    "versioning",
    "startup",
    "overhead",
    "proteins",
    "prefect_store",
)
PACKAGES = (
    "torch",
    "numba",
    "numpy",
    "schnetpack",
    "torchmd",
    "torchmd-net",
    "openmm",
    "mdtraj",
    "prefect",
    "dvc",
    "mlflow",
)
MARK = "<!-- written by make bench -->"


def main(names: list[str]) -> int:
    """Run the subjects named (all when none is) and keep the results of the others as they are."""
    unknown = set(names) - set(SUBJECTS)
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    kept = _read()
    failed = [name for name in names or SUBJECTS if not _run(name, kept)]
    _write(kept)
    if failed:
        print(f"failed: {', '.join(failed)}; their former results are kept", file=sys.stderr)
    return len(failed)


def _run(name: str, kept: dict[str, list[Result]]) -> bool:
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    child = subprocess.run([sys.executable, "-m", "benchmarks", "--one", name], stdout=subprocess.PIPE, text=True)
    if child.returncode:
        return False
    kept[name] = [Result(**line) for line in json.loads(child.stdout.splitlines()[-1])]
    for result in kept[name]:
        print(f"  {_row(result)}", flush=True)
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    return True


def _one(name: str) -> None:
    results: list[Result] = list(import_module(f"benchmarks.{name}").results())
    print(json.dumps([result._asdict() for result in results]))


def _read() -> dict[str, list[Result]]:
    path = HERE / "results.json"
    if not path.exists():
        return {}
    kept: dict[str, list[Result]] = {}
    for line in json.loads(path.read_text()):
        kept.setdefault(line.pop("subject"), []).append(Result(**line))
    return kept


def _write(kept: dict[str, list[Result]]) -> None:
    rows = [(subject, result) for subject in SUBJECTS for result in kept.get(subject, ())]
    lines = [{"subject": subject, **result._asdict()} for subject, result in rows]
    write_text(HERE / "results.json", json.dumps(lines, indent=1) + "\n")
    table = ["| name | ours | peer | ratio | unit | note |", "|---|---|---|---|---|---|"]
    table += [_row(result) for _, result in rows]
    readme = HERE / "README.md"
    before = readme.read_text().split(MARK)[0] if readme.exists() else "# Benchmarks\n\n"
    write_text(readme, before + "\n".join([MARK, "", _machine(), "", *table]) + "\n")


def _row(result: Result) -> str:
    peer = "–" if result.peer is None else f"{result.peer:.4g}"
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    return f"| `{result.name}` | {result.ours:.4g} | {peer} | {ratio} | {result.unit} | {result.note} |"


def _machine() -> str:
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    memory_GiB = psutil.virtual_memory().total / 2**30
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    machine = f"{psutil.cpu_count()} cores of {model}, {memory_GiB:.0f} GiB"
    note = "subjects that it did not name keep their earlier rows"
    return f"Machine of the latest run ({note}): {machine}; Python {platform.python_version()}, {packages}."


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, their children too
    if sys.argv[1:2] == ["--one"]:
        _one(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
