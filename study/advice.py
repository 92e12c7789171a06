"""What the study says to whoever plans a campaign; `make results` writes it from the records."""

from pathlib import Path

__all__ = ["ADVICE", "advice"]

ADVICE = Path(__file__).with_suffix(".txt")


def advice() -> str:
    """Which strategy at which budget, in one sentence (docs/results/when-it-pays.md); empty without records."""
    return ADVICE.read_text().strip() if ADVICE.is_file() else ""
