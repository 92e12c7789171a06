"""Strategies of acquisition, a file each, by their names in `selection.strategy`; each has a `pick`."""
