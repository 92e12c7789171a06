"""What a stranger reads first agrees with itself: version, license, citation."""

import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from rich.console import Console

import cgal
from flows.terminal import params_table

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


def test_new_projects_get_the_files_that_are_committed_here() -> None:
    """By git's index, in which a change of both is one: the working files are those of whoever runs a campaign here."""
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    held = {path: entry for entry, path in (line.split("\t") for line in listed.splitlines())}
    for name in ("data.dvc", "dvc.yaml", "params.yaml", "prefect.yaml", ".dvcignore", ".gitignore"):
        copy = f"flows/protein/template/{name.removeprefix('.')}"
        assert held[copy] == held[name], f"cp {name} {copy}"


def test_the_table_of_params_shows_brackets_as_they_are() -> None:
    console = Console(width=400)
    with console.capture() as shown:
        console.print(params_table())
    assert "pip install '/path/to/cgal[cgback]'" in shown.get()


def test_no_text_says_to_install_cgal_by_its_name_alone() -> None:
    """The package index has another project of that name, a geometry library; ours comes from a clone or a path."""
    patterns = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "cgal/**/*.py", "flows/**/*.py", "flows/**/*.md")
    texts = [path for pattern in patterns for path in ROOT.glob(pattern)]
    by_name = re.compile(r"pip install (-\S+ )*['\"]?cgal\b")
    assert by_name.search("pip install -U cgal")
    assert by_name.search("pip install 'cgal[gpu]'")
    assert [str(path) for path in texts if by_name.search(path.read_text())] == []
