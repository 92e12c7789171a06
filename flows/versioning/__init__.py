"""Git and DVC: a round is a point in git history.

File names in the workspace are constant; git and DVC carry the time axis. DVC keeps the bytes (`data/` and the
outputs of the stages in `round/`), git keeps the small files that name them, and each round is a commit on the branch
`campaign/<name>` with the tag `<name>/round-003`. That commit is made by git plumbing in an index of its own, so HEAD,
the user's index and the user's dirty files stay as they are.

A round is restored with stock tools, `git checkout <name>/round-003 -- data.dvc dvc.lock params.yaml && dvc pull`,
and replayed by `dvc repro` after that. No other package runs DVC or git.
"""

from flows.versioning.dvc_session import RepositoryBusy
from flows.versioning.lock import CampaignLock
from flows.versioning.repository import Repository
from flows.versioning.rounds import PublishedRound

__all__ = ["CampaignLock", "PublishedRound", "Repository", "RepositoryBusy"]
