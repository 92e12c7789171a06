"""How good a model is: the Wasserstein-1 distance to a reference of each observable in `cgal.benchmark.observables`."""

from cgal.deferred import defer

defer("deeptime")
defer("ot")
