"""How good a model is: Wasserstein-1 to a reference over TICA, reaction coordinate, bonds, angles and dihedrals."""

from cgal.benchmark.plots import plot_benchmark, plot_rmsd_rounds, plot_rounds
from cgal.benchmark.suite import BenchmarkResult, benchmark

__all__ = ["BenchmarkResult", "benchmark", "plot_benchmark", "plot_rmsd_rounds", "plot_rounds"]
