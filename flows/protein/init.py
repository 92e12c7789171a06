"""A project apart from the source: a folder under git and DVC, with the pipeline and a protein to start with."""

import re
import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from string import Template

from cgal import __version__
from cgal.errors import BadParams
from cgal.files import made_aside, write_text
from cgal.progress import Note, unsaid
from flows.campaign.opening import change_params
from flows.versioning import Repository
from flows.versioning.git import Git
from flows.workspace import Workspace

__all__ = ["Start", "init_project"]

DVC_CONFIG = """[core]
    autostage = false
    analytics = false
    check_update = false
[cache]
    type = "reflink,copy"
"""
DEMO_CONFIG = (
    DVC_CONFIG.replace("[core]", "[core]\n    remote = bundled")
    + """['remote "bundled"']
    url = bundled
"""
)
OWN_TEMPERATURE_K = 300.0


@dataclass(frozen=True)
class Start:
    """What a new project starts with: the bundled chignolin, or a protein of one's own from at most one source.

    `protein` is its folder's name in `data/`; by default the PDB id, the PDB file's name, or "protein".
    """

    demo: bool = False
    protein: str | None = None
    sequence: str | None = None
    pdb: Path | None = None
    pdb_id: str | None = None

    @property
    def has_source(self) -> bool:
        """Whether a structure can be made at once."""
        return bool(self.sequence or self.pdb or self.pdb_id)

    @property
    def name(self) -> str:
        """Name of the protein."""
        if self.demo:
            return "chignolin"
        stem = self.pdb.stem if self.pdb else self.pdb_id or "protein"
        return self.protein or re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "protein"

    def require_consistent(self) -> None:
        """Raise BadParams when more was asked for than one start."""
        sources = [self.sequence, self.pdb, self.pdb_id]
        if sum(source is not None for source in sources) + self.demo > 1 or (self.demo and self.protein):
            raise BadParams("give one of --demo, --sequence, --pdb and --pdb-id; --demo brings its own protein")


def init_project(folder: Path, start: Start, note: Note = unsaid) -> str:
    """Make a project in a new or empty folder, whole or not at all, and give the lines that a person would type next.

    Raises BadParams when the folder holds anything or a value is wrong, VersioningError when git fails, and BadFile or
    BadStructure as `cgal.all_atom.structures` when the structure cannot be made.
    """
    start.require_consistent()
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadParams(f"{folder}: is not empty; name a new folder")
    with made_aside(folder) as root, as_file(files("flows.protein") / "template") as template:
        git = Git(root)
        git.run("init", "--quiet", "--initial-branch", "main")
        _copy_pipeline(template, root, start)
        lines = _next_lines(start)
        text = Template((template / "README.md").read_text())
        write_text(root / "README.md", text.substitute(name=folder.name, version=__version__, next=lines))
        if start.demo:
            Repository(root).dvc.pull_bundled()
        elif start.has_source:
            _make_protein(root, start, note)
        git.run("add", "--all")
        git.run("commit", "--quiet", "--message", f"A project of cgal {__version__}", **git.identity())
    return f"cd {folder}\n{lines}"


def _copy_pipeline(template: Path, root: Path, start: Start) -> None:
    for name in ("dvc.yaml", "prefect.yaml"):
        shutil.copyfile(template / name, root / name)
    for name in ("gitignore", "dvcignore"):
        shutil.copyfile(template / name, root / f".{name}")
    write_text(root / ".dvc" / ".gitignore", "/config.local\n/tmp\n/cache\n")
    write_text(root / ".dvc" / "config", DVC_CONFIG)
    params = (template / "params.yaml").read_text()
    if start.demo:
        write_text(root / "params.yaml", params)
        write_text(root / ".dvc" / "config", DEMO_CONFIG)
        shutil.copytree(template / "bundled", root / ".dvc" / "bundled")
        shutil.copyfile(template / "data.dvc", root / "data.dvc")
    else:
        own = re.sub(r"^temperature_K:.*$", f"temperature_K: {OWN_TEMPERATURE_K}", params, flags=re.MULTILINE)
        change_params(root / "params.yaml", {"protein": start.name, "campaign": {"name": "first"}}, own)


def _make_protein(root: Path, start: Start, note: Note) -> None:
    from cgal.frames import read_pdb_text, sequence_of
    from cgal.selection.pool import chain_cutoff_nm
    from flows.protein.structure import make_structure

    workspace = Workspace(root)
    out = workspace.data / "structure.pdb"
    make_structure(out, workspace.params, sequence=start.sequence, pdb=start.pdb, pdb_id=start.pdb_id, note=note)
    beads = len(sequence_of(read_pdb_text(out.read_text()).topology))
    change_params(root / "params.yaml", {"selection": {"cutoff_nm": chain_cutoff_nm(beads)}})
    Repository(root).dvc.record_data()


def _next_lines(start: Start) -> str:
    lines = []
    if not start.demo:
        lines.append("edit params.yaml                 # temperature_K and force_field above all")
        if not start.has_source:
            lines.append(
                f"cgal structure data/{start.name}/structure.pdb --sequence GYDPETGTWG   # or --pdb FILE, --pdb-id ID"
            )
        lines += [
            "cgal seed                        # minutes",
            "cgal reference                   # hours: the ground truth",
        ]
    return "\n".join([*lines, "cgal run"])
