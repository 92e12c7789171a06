"""What a person sees while a campaign runs: a bar for the stage at work, a line for each done, a table at the end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column, Table

from cgal.params import Params, section_models
from cgal.progress import Progress

__all__ = ["campaign_table", "console", "describe", "next_lines", "params_table", "stage_bar"]

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 120

PLAIN_INTERVAL_S = 15.0


@contextmanager
def stage_bar(title: str) -> Iterator[Progress]:
    """Show how far a stage is: a live bar on a terminal, a line now and then elsewhere (logs, CI)."""
    if not console.is_terminal:
        yield _plain(title)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=16, table_column=Column(min_width=16)),
        MofNCompleteColumn(table_column=Column(min_width=9)),
        TimeElapsedColumn(table_column=Column(min_width=7)),
        TimeRemainingColumn(table_column=Column(min_width=7)),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(title, total=None, note="")

        def show(done: int, total: int, note: str = "") -> None:
            bars.update(bar, completed=done, total=total, note=note)

        yield show


def _plain(title: str) -> Progress:
    last = started = monotonic()
    console.print(f"  {title} starts")

    def show(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if monotonic() - last > PLAIN_INTERVAL_S:
            last = monotonic()
            left = f"(about {(last - started) * (total - done) / done:.0f} s left) " if 0 < done < total else ""
            console.print(f"  {title} {done}/{total} {left}{note}")

    return show


def describe(summary: Mapping[str, float | int | str]) -> str:
    """Put a stage's few numbers on one line.

    >>> describe({"frames": 40, "w1_tica": 1.23456})
    'frames 40, w1 tica 1.235'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in summary.items()
    )


def campaign_table(campaign: str, rounds: Sequence[Mapping[str, Any]]) -> Table:
    """One row per round: each W1 with 95 % intervals, then what they cost; and the floor in the last row.

    Of several proteins each has its row, below that of their mean.
    """
    from cgal.benchmark.observables import MISSING, in_records

    shown = in_records(name for entry in rounds for name in entry["w1"])
    title = f"campaign {campaign}: Wasserstein-1 to the reference, with 95 % intervals"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in (
        "round",
        *(observable.heading for observable in shown.values()),
        "frames",
        "label steps",
        "failed steps",
        "seed steps",
        "lost",
        "failed",
        "wall",
    ):
        table.add_column(escape(heading), justify="right", overflow="fold")

    def add(label: str, entry: Mapping[str, Any], wall: str = "") -> None:
        table.add_row(
            label,
            *(
                _interval(entry["w1"][name], observable.scale) if name in entry["w1"] else MISSING
                for name, observable in shown.items()
            ),
            str(entry["frames"]),
            _thousands(entry["acquisition_steps"] - (entry["failed_steps"] or 0)),
            _thousands(entry["failed_steps"]),
            _thousands(entry["seed_steps"]),
            f"{entry['lost_replicas']}/{entry['replicas']}",
            str(entry["oracle_failed"]),
            wall,
        )

    def add_floor(label: str, floor: Mapping[str, float]) -> None:
        cells = (f"{floor[name] * each.scale:.2g}" if name in floor else MISSING for name, each in shown.items())
        table.add_row(label, *cells, *[""] * 7)

    for entry in rounds:
        add(str(entry["round"]), entry, f"{entry['wall_s']:.0f} s\n({entry['overhead_s']:.0f} s)")
        for protein, own in entry.get("proteins", {}).items():
            add(protein, own)
    if rounds:
        table.add_section()
        add_floor("floor", rounds[-1]["floor"])
        for protein, own in rounds[-1].get("proteins", {}).items():
            add_floor(protein, own["floor"])
    table.caption = (
        "frames: training set; steps: all-atom ones so far, minimisation included, for labels, for tries that failed "
        f"(where that is {MISSING}, among those for labels) and for the seed, its runs and its labels; lost: replicas "
        "that exploded, imploded or went NaN; failed: frames the oracle could not label; wall: in brackets all that is "
        "no science, with the publishing of the round before; "
        "floor: one half of the reference against the other; a W1 as low as that is the reference's own noise"
        + ("; a round's first row: the mean over its proteins" if any("proteins" in entry for entry in rounds) else "")
        + _lag(rounds)
        + _physics(rounds)
    )
    return table


def _thousands(steps: int | None) -> str:
    from cgal.benchmark.observables import MISSING

    return MISSING if steps is None else f"{steps / 1000:.0f}k"


def _lag(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Lags that TICA was fitted with; rounds from before it was recorded do not tell theirs."""
    lags_ps = dict.fromkeys(f"{entry['tica_lag_ps']:g}" for entry in rounds if entry.get("tica_lag_ps"))
    return f"; TICA: at a lag of {' or '.join(lags_ps)} ps, whole frames of the reference" if lags_ps else ""


def _physics(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Warning that part of each W1 is the distance between two force fields, which no training takes away."""
    physics = dict.fromkeys(entry["reference_physics"] for entry in rounds if entry.get("reference_physics"))
    return f"; reference and oracle differ in physics: the reference is of {' or '.join(physics)}" if physics else ""


def _interval(score: Mapping[str, float], scale: float) -> str:
    value, low, high = (f"{score[name] * scale:.2g}" for name in ("value", "low", "high"))
    return f"{value}\n{low}-{high}"


def next_lines(root: Path, rounds: Sequence[Mapping[str, Any]]) -> str:
    """Give the lines that a person would type next in a project."""
    last = rounds[-1]
    activate = "\n  once a shell               source .venv/bin/activate" if (root / ".venv").is_dir() else ""
    return f"""
[bold]Next[/bold]{activate}
  figures over the rounds    cgal report
  figures of this round      ls round/plots/*/*.png
  MLflow and Prefect pages   cgal serve
  restore a round            cgal checkout {last["round"]}
      (the same by hand)     git checkout {last["tag"]} -- {last["pointer"]} dvc.lock params.yaml && dvc pull
  compare two rounds         dvc metrics diff {rounds[0]["tag"]} {last["tag"]}
"""


def params_table() -> Table:
    """Every key of params.yaml with its default, bounds and meaning."""
    table = Table(title="params.yaml")
    for heading in ("key", "default", "bounds", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, default, bounds, meaning in _parameters("", Params):
        table.add_row(key, default, bounds, meaning)
    return table


def _parameters(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        for section in section_models(field.annotation):
            yield f"[bold]{prefix}{name}[/bold]", "", "", (section.__doc__ or "").strip()
            yield from _parameters(f"{prefix}{name}.", section)
        if not isinstance(field.default, BaseModel):
            bounds = ", ".join(str(bound).removeprefix("annotated_types.") for bound in field.metadata)
            meaning = escape(field.description or "")
            yield f"{prefix}{name}", str(field.default), bounds or _choices(field.annotation), meaning


def _choices(annotation: Any) -> str:
    return ", ".join(str(choice) for choice in get_args(annotation) if get_origin(annotation) is Literal)
