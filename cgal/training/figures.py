"""Figures of a training."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cgal.files import atomic_write
from cgal.training.train import TrainingResult

__all__ = ["plot_training"]


def plot_training(result: TrainingResult, folder: Path) -> tuple[Path, ...]:
    """Draw training.png in `folder`: force errors and learning rate by epoch; returns its path."""
    epochs, train_rmse, validation_rmse, rates = np.array(result.history, dtype=float).T
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    errors, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    errors.plot(epochs, train_rmse, color="#00798c", label="training")
    errors.plot(epochs, validation_rmse, color="#d1495b", label="held out")
    prior_rmse = result.validation.prior_rmse_kJ_per_mol_nm
    errors.axhline(prior_rmse, color="#222222", linestyle=":", label="prior alone, held out")
    errors.axvline(result.best_epoch, color="#edae49", linewidth=1, label=f"best, epoch {result.best_epoch}")
    errors.set(ylabel="force error, rms [kJ/mol/nm]")
    errors.legend(frameon=False, fontsize=8)
    rate.plot(epochs[1:], rates[1:], color="#222222")
    rate.set(xlabel="epoch", ylabel="learning rate")
    path = folder / "training.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return (path,)
