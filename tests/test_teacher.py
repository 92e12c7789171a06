"""The teacher: its labels, campaigns on it in earnest, and what is said of records with a known answer."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from cgal.benchmark.observables import OBSERVABLES
from cgal.params import load_params
from cgal.potential.architectures import freeze
from study.in_processes import append_rows
from study.teacher.arms import ARMS, BUDGETS, Task, measure
from study.teacher.oracle import ALIKE, BOUND, STRIDE, NOISE_kJ_per_mol_nm, STEP_ps, Teacher, load_teacher
from study.teacher.records import NOISES, done
from study.teacher.students import STUDENTS
from study.when_it_pays import contrasts, write_when_it_pays
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher()


def test_labels_are_the_teachers_forces_and_the_measured_noise(teacher):
    starts = teacher.truth.positions[:20]
    clean, lost = teacher.label(starts, 1000, noise=0.0, seed=1, first=3)
    noisy, _ = teacher.label(starts, 1000, noise=4.0, seed=1, first=3)
    assert lost == 0
    assert np.array_equal(clean.positions, noisy.positions)
    forces = freeze(teacher.potential).energy_and_forces(torch.from_numpy(clean.positions))[1].detach().numpy()
    assert np.array_equal(clean.forces, forces)
    scatter = (noisy.forces - clean.forces).std()
    assert scatter == pytest.approx(4 * NOISE_kJ_per_mol_nm, rel=4 / math.sqrt(2 * clean.forces.size))
    assert (clean.trajectory.min(), clean.trajectory.max()) == (3, 22)
    costs = pd.read_csv(REPOSITORY / "docs" / "results" / "label_noise_costs.csv").query("map == 'local_frames'")
    assert costs["noise_kJ_per_mol_nm"].iloc[0] == pytest.approx(NOISE_kJ_per_mol_nm, abs=1.0)


def test_the_truth_is_in_equilibrium_under_the_teacher(teacher):
    """Early and late halves of the long runs are as near as random halves of them are."""
    middle = np.median(teacher.truth.time_ps)
    halves = (teacher.truth.take(np.flatnonzero(side)) for side in
              (teacher.truth.time_ps <= middle, teacher.truth.time_ps > middle))  # fmt: skip
    assert all(teacher.score(half)["tica", "exact"] < teacher.facts["floor"]["tica exact"] for half in halves)


def test_campaigns_of_one_seed_spend_the_same_teacher_time_and_give_the_same_rows_again(teacher, monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    short = {name: student._replace(replicas=4, steps=1200) for name, student in STUDENTS.items()}
    tasks = [Task(arm, 7, 7, 1.0) for arm in ("seed", "continued", "parallel", "least_counts", BOUND, "coverage")]
    path = tmp_path / "records.csv"
    for task in tasks:
        append_rows(path, measure(task, teacher, short["network"], (0.1,)))
    assert done(path) == set(tasks)
    records = pd.read_csv(path)
    assert len(records) == len(tasks) * 3 * 2 * len(OBSERVABLES)
    spent = records.query("arm != 'seed'")["teacher_steps"]
    assert spent.between(0.99 * teacher.steps(0.1), teacher.steps(0.1)).all()
    assert (records["value"] > 0).all()
    again = tmp_path / "again.csv"
    append_rows(again, measure(tasks[-1], teacher, short["network"], (0.1,)))
    assert path.read_text().endswith(again.read_text().split("\n", 1)[1])


def test_the_linear_student_has_models_with_and_without_weights(teacher, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    student = STUDENTS["linear"]._replace(replicas=4, steps=1200)
    rows = measure(Task("coverage", 7, 7, ALIKE), teacher, student, (0.1,))
    models = ["raw", "raw_weighted", "prior", "linear", "linear_weighted"]
    assert [row["model"] for row in rows if (row["metric"], row["mode"]) == ("tica", "exact")] == models
    assert all(row["value"] > 0 for row in rows)


def test_noise_that_tells_as_much_as_the_all_atom_labels_of_a_slowest_time(teacher):
    truths = pd.read_csv(REPOSITORY / "docs" / "results" / "ground_truths.csv").set_index("system")
    params = load_params(REPOSITORY / "params.yaml")
    spacing_ps = params.oracle.free_stride * params.force_field.timestep_ps
    all_atom = truths.loc["chignolin, ff96 + OBC2, 350 K", "slowest_ps"] / spacing_ps
    assert teacher.slowest_ps / (STRIDE * STEP_ps) / all_atom == pytest.approx(ALIKE**2, rel=0.05)


def known(factor: float, scatter: float = 0.05, seeds: int = 6, student: str = "linear") -> pd.DataFrame:
    """Records in which `coverage` has so many times the W1 of all other arms, at 0.3 and 1 of the slowest time."""
    generator = np.random.default_rng(1)
    rows = [
        {"arm": arm, "seed_set": seed, "seed": seed, "budget_over_slowest": budget, "noise": NOISES[student],
         "model": model, "metric": metric, "mode": mode, "floor": 0.1, "teacher_steps": 1, "failed": 0,
         "lost_replicas": 0,
         "value": seed * math.exp(scatter * generator.normal())
         * (factor if arm == "coverage" and budget in (0.3, 1.0) else 1.0)}
        for arm, seed, model, metric, mode in product(
            ARMS, range(1, seeds + 1), ("raw", "prior", student), OBSERVABLES, ("exact", "paper"))
        for budget in ((0.0,) if arm == "seed" else BUDGETS)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_known_gain_is_found_where_it_is_and_nowhere_else():
    found = contrasts(known(0.5), "linear")
    primary = found[found["primary"]].iloc[0]
    assert primary["change"] == pytest.approx(-50, abs=8)
    assert primary["low"] < primary["change"] < primary["high"] < 0
    sure = found[(found["p"] < 0.05) & (found["change"] < 0)]
    assert set(sure["arm"]) == {"coverage"}
    assert set(sure["budget"]) == {0.3, 1.0}
    assert len(found) == len(BUDGETS) * (len(ARMS) - 3 + 2)


def test_without_records_the_page_is_of_the_pilot_and_advises_nothing(tmp_path):
    known(1.0).query("budget_over_slowest in (0.1, 0.3)").to_csv(tmp_path / "teacher_linear_pilot.csv", index=False)
    write_when_it_pays(tmp_path, tmp_path / "advice.txt")
    assert "the pilot, which decides nothing" in (tmp_path / "when-it-pays.md").read_text()
    assert not (tmp_path / "advice.txt").exists()


def test_the_page_advises_what_its_records_say(tmp_path):
    known(0.5).to_csv(tmp_path / "teacher_linear.csv", index=False)
    known(1.0).to_csv(tmp_path / "teacher_linear_pilot.csv", index=False)
    for name in ("teacher", "teacher_pilot"):
        known(2.0, student="network").to_csv(tmp_path / f"{name}.csv", index=False)
    write_when_it_pays(tmp_path, tmp_path / "advice.txt")
    said = (tmp_path / "advice.txt").read_text()
    better = said.partition("Surely better")[2].partition("coverage, the default")[0]
    assert "at 0.3 coverage (-5" in better or "at 0.3 coverage (-4" in better
    assert "at 0.1" not in better
    assert "against no label at all" in said
    page = (tmp_path / "when-it-pays.md").read_text()
    assert said.strip() in page
    assert BOUND not in said
    assert page.count("What starts in equilibrium give\n") == 2
    assert "which was not planned, it is" in page
    assert (tmp_path / "when_it_pays.png").is_file()
