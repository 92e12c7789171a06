"""Optimal transport of many surpluses between the same points: a network simplex that starts from its last tree.

Resamples of a bootstrap differ in what lies where, never in the distances. A spanning tree of the points carries any
surplus (each edge what its far side has too much, in whichever direction), so the optimal tree of one resample is a
feasible start for the next, and near its optimum. The algorithm is the textbook's (Ahuja, Magnanti and Orlin, Network
Flows, chapter 11); compiled, it leaves other Python threads alone, so that resamples are shared between the cores.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import no_type_check

import numpy as np
from jaxtyping import Float64, Int64
from numba import njit

__all__ = ["transport_costs"]

NEGLIGIBLE = 1e-13
"""A point whose share of all mass stays below this in every row is left out."""

PRICED_ROWS = 3
"""Points whose edges are looked through for the best one before the tree is changed."""

MOVES_A_POINT = 1000
"""Far more than it ever takes (about four); a row that ends there is given as NaN."""


def transport_costs(
    costs: Float64[np.ndarray, "points points"], surpluses: Float64[np.ndarray, "rows points"]
) -> Float64[np.ndarray, " rows"]:
    """Least cost of carrying each row's surplus to its deficit; `costs` are distances (a metric), rows sum to zero.

    On all cores; their number does not change the result. Raises ValueError when a number is not finite.
    """
    if not (np.isfinite(costs).all() and np.isfinite(surpluses).all()):
        raise ValueError("costs and surpluses must be finite: a resample without any weight has no distance")
    used = np.abs(surpluses).max(axis=0, initial=0.0) > NEGLIGIBLE
    if not used.any():
        return np.zeros(len(surpluses))
    costs, surpluses = np.ascontiguousarray(costs[np.ix_(used, used)]), np.ascontiguousarray(surpluses[:, used])
    found = np.empty(len(surpluses))
    parent = np.where(np.arange(len(costs)) == 0, -1, 0)
    parent = _solve(costs, surpluses[:1], parent, found[:1])
    workers = len(os.sched_getaffinity(0))
    shares = np.array_split(np.arange(len(surpluses)), workers)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda rows: _solve_share(costs, surpluses, parent, found, rows), shares))
    return found


def _solve_share(
    costs: Float64[np.ndarray, "points points"],
    surpluses: Float64[np.ndarray, "rows points"],
    parent: Int64[np.ndarray, " points"],
    found: Float64[np.ndarray, " rows"],
    rows: Int64[np.ndarray, " some"],
) -> None:
    if len(rows):
        share = slice(rows[0], rows[-1] + 1)
        _solve(costs, surpluses[share], parent, found[share])


@njit(nogil=True, cache=True)
@no_type_check
def _solve(costs, surpluses, parent, found):
    """Find the cost of each row, from the tree given; return the first row's optimal tree.

    A tree is rooted: each point but the root has an edge to its parent, which carries `flow` up to it or down from it.
    `child`, `after` and `before` list the children of each point; `price` grows by the length of each edge along its
    direction, so that a new edge pays off where prices differ by more than its length.
    """
    count = len(costs)
    tree = np.empty((6, count), dtype=np.int64)
    state = np.empty((2, count))
    best = parent.copy()
    for row in range(len(surpluses)):
        tree[0] = parent
        _grow(costs, surpluses[row], tree, state)
        found[row] = 0.0 if _improve(costs, surpluses[row], tree, state) else np.nan
        for point in range(count):
            if tree[0, point] >= 0:
                found[row] += state[0, point] * costs[point, tree[0, point]]
        if row == 0:
            best = tree[0].copy()
    return best


@njit(nogil=True, cache=True)
@no_type_check
def _grow(costs, surplus, tree, state):
    """Fill in everything else for a tree that is given by its parents."""
    parent, up, depth, child, after, before = tree
    flow, price = state
    child[:] = -1
    after[:] = -1
    before[:] = -1
    for point in range(len(parent)):
        if parent[point] >= 0:
            _attach(point, parent[point], tree)
    order = np.empty(len(parent), dtype=np.int64)
    point, length = np.argmin(parent), 0
    while point >= 0:
        order[length] = point
        length += 1
        point = _following(point, order[0], tree)
    flow[:] = surplus
    for place in range(length - 1, 0, -1):
        point = order[place]
        flow[parent[point]] += flow[point]
        up[point] = flow[point] > 0
        flow[point] = abs(flow[point])
    depth[order[0]], price[order[0]] = 0, 0.0
    for point in order[1:]:
        _hang(point, costs, tree, price)


@njit(nogil=True, cache=True)
@no_type_check
def _improve(costs, surplus, tree, state):
    """Bring in edges from surplus to deficit until none pays off any more; false when that does not end."""
    price = state[1]
    sources, sinks = np.flatnonzero(surplus > 0), np.flatnonzero(surplus < 0)
    lengths = _between(costs, sources, sinks)
    worthwhile = 1e-12 * costs.max()
    prices = np.empty(len(sinks))
    row = 0
    for _ in range(MOVES_A_POINT * len(costs)):
        for column in range(len(sinks)):
            prices[column] = price[sinks[column]]
        gain, chosen = worthwhile, -1
        fruitless = 0
        while fruitless < len(sources) and (chosen < 0 or fruitless < PRICED_ROWS):
            reached = _highest_gain(prices, lengths[row]) - price[sources[row]]
            if reached > gain:
                gain, chosen = reached, row
            row = (row + 1) % len(sources)
            fruitless += 1
        if chosen < 0:
            return True
        _move(sources[chosen], sinks[_best(prices, lengths[chosen])], costs, tree, state)
    return False


@njit(nogil=True, cache=True)
@no_type_check
def _between(costs, sources, sinks):
    lengths = np.empty((len(sources), len(sinks)))
    for row in range(len(sources)):
        for column in range(len(sinks)):
            lengths[row, column] = costs[sources[row], sinks[column]]
    return lengths


@njit(nogil=True, cache=True, fastmath=True)
@no_type_check
def _highest_gain(prices, lengths):
    highest = prices[0] - lengths[0]
    for column in range(len(prices)):
        highest = max(highest, prices[column] - lengths[column])
    return highest


@njit(nogil=True, cache=True)
@no_type_check
def _best(prices, lengths):
    highest, place = prices[0] - lengths[0], 0
    for column in range(len(prices)):
        gain = prices[column] - lengths[column]
        if gain > highest:
            highest, place = gain, column
    return place


@njit(nogil=True, cache=True)
@no_type_check
def _move(first, second, costs, tree, state):
    """Send as much as possible along a new edge and round its cycle; the edge that runs dry leaves the tree."""
    parent, up = tree[0], tree[1]
    flow, price = state
    amount, leaving, below_first = np.inf, -1, False
    one, other = first, second
    while one != other:
        if tree[2, one] >= tree[2, other]:
            if up[one] and flow[one] < amount:
                amount, leaving, below_first = flow[one], one, True
            one = parent[one]
        else:
            if not up[other] and flow[other] <= amount:
                amount, leaving, below_first = flow[other], other, False
            other = parent[other]
    join = one
    point = first
    while point != join:
        flow[point] += -amount if up[point] else amount
        point = parent[point]
    point = second
    while point != join:
        flow[point] += amount if up[point] else -amount
        point = parent[point]
    top, above = (first, second) if below_first else (second, first)
    _turn(top, above, below_first, amount, leaving, tree, flow)
    point = top
    while point >= 0:
        _hang(point, costs, tree, price)
        point = _following(point, top, tree)


@njit(nogil=True, cache=True)
@no_type_check
def _turn(top, above, upwards, amount, leaving, tree, flow):
    """Hang the part of the tree below the leaving edge from another point, and so reverse the path in between."""
    parent, up = tree[0], tree[1]
    point = top
    while True:
        former, former_up, former_flow = parent[point], up[point], flow[point]
        _detach(point, tree)
        _attach(point, above, tree)
        parent[point], up[point], flow[point] = above, upwards, amount
        if point == leaving:
            break
        above, upwards, amount, point = point, not former_up, former_flow, former


@njit(nogil=True, cache=True)
@no_type_check
def _hang(point, costs, tree, price):
    """Set depth and price of a point from its parent's."""
    above = tree[0, point]
    tree[2, point] = tree[2, above] + 1
    price[point] = price[above] - costs[point, above] if tree[1, point] else price[above] + costs[point, above]


@njit(nogil=True, cache=True)
@no_type_check
def _attach(point, above, tree):
    child, after, before = tree[3], tree[4], tree[5]
    after[point], before[point] = child[above], -1
    if child[above] >= 0:
        before[child[above]] = point
    child[above] = point


@njit(nogil=True, cache=True)
@no_type_check
def _detach(point, tree):
    parent, child, after, before = tree[0], tree[3], tree[4], tree[5]
    if before[point] >= 0:
        after[before[point]] = after[point]
    else:
        child[parent[point]] = after[point]
    if after[point] >= 0:
        before[after[point]] = before[point]


@njit(nogil=True, cache=True)
@no_type_check
def _following(point, top, tree):
    """Next point of the tree below `top`, parents before their children; -1 after the last."""
    parent, child, after = tree[0], tree[3], tree[4]
    if child[point] >= 0:
        return child[point]
    while point != top and after[point] < 0:
        point = parent[point]
    return -1 if point == top else after[point]
