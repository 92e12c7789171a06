"""MkDocs hook: the decisions in the navigation, so that a new page needs no entry in `mkdocs.yml`."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the decisions, in order of their numbers, to the section that `mkdocs.yml` opens for them."""
    pages = sorted(Path(config.docs_dir, "decisions").glob("[0-9]*.md"))
    decisions = next(section["Decisions"] for section in config.nav or [] if "Decisions" in section)
    decisions += [f"decisions/{page.name}" for page in pages]
    return config
