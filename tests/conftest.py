"""Shared fixtures; shapes and types of `cgal` are checked on every call of every test."""

from jaxtyping import install_import_hook

install_import_hook("cgal", "beartype.beartype")
