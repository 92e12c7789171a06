"""What a stranger reads first agrees with itself: version, license, citation."""

import re
import tomllib
from pathlib import Path

import yaml

import cgal

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_version_is_that_of_pyproject_everywhere() -> None:
    released = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    image = yaml.safe_load((ROOT / "compose.yaml").read_text())["x-own"]["image"]
    assert {cgal.__version__, CITATION["version"], released[0], image.removeprefix("cgal:")} == {PROJECT["version"]}


def test_the_license_is_the_same_everywhere() -> None:
    license_text = (ROOT / "LICENSE").read_text()
    assert license_text.startswith(f"{PROJECT['license']} License")
    assert CITATION["license"] == PROJECT["license"]
    assert PROJECT["authors"][0]["name"] in license_text


def test_the_citation_has_what_its_format_requires() -> None:
    """Citation File Format 1.2.0; a reference needs a type, a title and authors."""
    assert CITATION["cff-version"] == "1.2.0"
    assert all(CITATION[key] for key in ("message", "title", "authors"))
    assert all(reference[key] for reference in CITATION["references"] for key in ("type", "title", "authors"))
    people = [author for work in (CITATION, *CITATION["references"]) for author in work["authors"]]
    assert all(author.keys() <= {"name", "family-names", "given-names"} for author in people)


def test_dvc_sees_no_stages_in_the_template_of_new_projects() -> None:
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        assert repo.dvcignore.is_ignored_dir(str(ROOT / "flows" / "protein" / "template"))
