"""Git and DVC: a round is a point in git history."""
