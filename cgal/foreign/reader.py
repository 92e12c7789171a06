"""Files are read once, by another process: a damaged one can take down the C library that reads it.

That process, `python -m cgal.foreign.reader WANTED FOLDER TOPOLOGY FILE ...`, lays the frames of the chain
down in plain arrays, a piece at a time, which this one maps into memory: neither ever holds a whole file. What it has
to say comes as lines of JSON: the file that it turns to, how far it is, what it has laid down, or why it could not.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from cgal import errors
from cgal.errors import BadTrajectory, CgalError
from cgal.foreign.chemistry import Selection
from cgal.foreign.topology import Protein
from cgal.foreign.trajectory import (
    Source,
    count_frames,
    first_line,
    open_protein,
    read_pieces,
    trajectory_numbers,
    unreadable,
    unwritable,
)
from cgal.progress import Progress, silent

__all__ = ["Wanted", "read_files"]

type Said = dict[str, Any]


class Wanted(NamedTuple):
    """What of a file is read: which molecules, forces or not; and the temperature that it should be of."""

    select: Selection
    temperature_K: float
    forces: bool


ARRAYS = {"positions": "float32", "forces": "float32", "box": "float32", "time_ps": "float64"}


def read_files(
    topology: Path,
    paths: Sequence[Path],
    wanted: Wanted,
    folder: Path,
    progress: Progress = silent,
) -> list[tuple[Source, ...] | CgalError]:
    """Read the chain's frames of each file into arrays in `folder`; may be removed while they are in use.

    For each file its trajectories (HDF5 may number several), or why it cannot be read. Raises BadStructure or
    BadTrajectory for the topology.
    """
    answers: list[tuple[Source, ...] | CgalError] = []
    while len(answers) < len(paths):  # a file that ends its reader is one answer, too
        left, place = paths[len(answers) :], folder / str(len(answers))
        place.mkdir(parents=True)
        answers += _read_in_child(topology, left, wanted, place, progress)
    return answers


def _read_in_child(
    topology: Path, paths: Sequence[Path], wanted: Wanted, folder: Path, progress: Progress
) -> list[tuple[Source, ...] | CgalError]:
    command = [sys.executable, "-P", "-m", "cgal.foreign.reader", json.dumps(wanted), str(folder), str(topology)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answers: list[tuple[Source, ...] | CgalError] = []
    with (folder / "stderr").open("w+") as said:
        with subprocess.Popen(
            [*command, *map(str, paths)], stdout=subprocess.PIPE, stderr=said, env=environment, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                answer = _answer(json.loads(line), paths[len(answers) :], folder, progress)
                answers += [] if answer is None else [answer]
        if child.returncode:
            said.seek(0)
            reason = f"reading it ends the process: {_end(child.returncode, said.read())}"
            reached = next((path for path in paths[len(answers) : len(answers) + 1]), paths[-1])
            if not (folder / "opened").exists():
                raise unreadable(topology, reason)
            answers.append(unreadable(reached, reason))
    return answers


def _answer(
    said: Said, left: Sequence[Path], folder: Path, progress: Progress
) -> tuple[Source, ...] | CgalError | None:
    """What a line says of the next file; raises what was wrong with the topology."""
    if "done" in said:
        progress(said["done"], max(said["total"], said["done"]), f"{left[0].name}: frames")
        return None
    if "error" in said:
        error: CgalError = getattr(errors, said["error"])(said["reason"])
        if said["of"] == "topology":
            raise error
        return error
    return _mapped(left[0], folder / said["folder"], said)


def _mapped(path: Path, folder: Path, said: Said) -> tuple[Source, ...]:
    """Arrays that a child has laid down; one source for each trajectory, in order of coming."""
    found: dict[str, Any] = dict.fromkeys(ARRAYS)
    for name, shape in said["shapes"].items():
        kind = ARRAYS[name]
        empty = 0 in shape
        found[name] = (
            np.zeros(shape, kind)
            if empty
            else np.memmap(folder / name, kind, "r+", shape=tuple(shape)).view(np.ndarray)
        )
    source = Source(path, frame=np.arange(said["shapes"]["positions"][0]), force_field=said["force_field"], **found)
    numbers = said["numbers"]
    if numbers is None:
        return (source,)
    return tuple(source.take(np.flatnonzero(np.array(numbers) == number)) for number in dict.fromkeys(numbers))


def _end(code: int, stderr: str) -> str:
    if code < 0:
        return signal.Signals(-code).name
    return next(reversed(stderr.strip().splitlines()), f"exit code {code}")


# in the other process


def _read(wanted: Wanted, folder: Path, topology: Path, paths: Sequence[Path]) -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource  # there is none on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # readers print, too

    def say(said: Said) -> None:
        print(json.dumps(said), file=stream, flush=True)

    try:
        protein = open_protein(topology, wanted.select)
    except CgalError as error:
        say({"error": type(error).__name__, "reason": str(error), "of": "topology"})
        return
    (folder / "opened").touch()
    for number, path in enumerate(paths):
        try:
            say(_lay_down(path, protein, wanted, folder / str(number), say) | {"folder": str(number)})
        except CgalError as error:
            say({"error": type(error).__name__, "reason": str(error), "of": "file"})
        except OSError as error:  # that of reading is told as such already
            full = unwritable(folder, error)
            say({"error": type(full).__name__, "reason": str(full), "of": "file"})
        except Exception as error:  # each of mdtraj's readers fails in its own way
            say({"error": BadTrajectory.__name__, "reason": str(unreadable(path, first_line(error))), "of": "file"})


def _lay_down(path: Path, protein: Protein, wanted: Wanted, folder: Path, say: Callable[[Said], None]) -> Said:
    """Append every piece to a file an array, and say the arrays' shapes; raises BadTrajectory when one is shorter."""
    folder.mkdir()
    total, count, shapes = count_frames(path) or 0, 0, {"positions": [0, len(protein.atoms), 3]}
    made: Any = None
    with ExitStack() as stack:
        streams = {name: stack.enter_context((folder / name).open("wb")) for name in ARRAYS}
        for source in read_pieces(path, protein, wanted.temperature_K, forces=wanted.forces):
            count += len(source.frame)
            for name, values in _arrays(source):
                values.astype(ARRAYS[name]).tofile(streams[name])
                shapes[name] = [shapes.get(name, [0])[0] + len(values), *values.shape[1:]]
            made = source.force_field
            say({"done": count, "total": total})
    for name, (length, *_) in shapes.items():
        if length != count:
            raise BadTrajectory(f"{path.name}: {name} in {length} of {count} frames; write it in all or in none")
    numbers = trajectory_numbers(path, count)
    return {"shapes": shapes, "numbers": None if numbers is None else numbers.tolist(), "force_field": made}


def _arrays(source: Source) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    for name in ARRAYS:
        values = getattr(source, name)
        if values is not None:
            yield name, values


if __name__ == "__main__":
    _read(Wanted(*json.loads(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]), [Path(name) for name in sys.argv[4:]])
