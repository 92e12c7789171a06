"""Debian's Chromium under Playwright, for what a page shows to a person."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

__all__ = ["NO_ASSISTANT", "Browser", "browsing", "needs_browser"]

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-proxy-server", "--hide-scrollbars"]
TIMEOUT_MS = 180_000

NO_ASSISTANT = """
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""
"""For MLflow's pages: its assistant's panel would cover half of them."""

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"
)


@dataclass(frozen=True)
class Browser:
    """A page of a real browser."""

    page: Page

    def open(self, address: str) -> None:
        self.page.goto(address)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.page.evaluate(f"given => (function () {{ {script} }}).apply(null, given)", list(arguments))

    def text(self) -> str:
        return self.page.inner_text("body")

    def wait_for(self, words: Sequence[str], seconds: float = 180) -> str:
        """Text of the page once all words are drawn."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            text = self.text()
            if all(word in text for word in words):
                return text
            time.sleep(0.5)
        raise AssertionError(f"never drawn: {[word for word in words if word not in text]}\n{text}")

    def photograph(self, path: Path) -> None:
        self.page.screenshot(path=path)


@contextmanager
def browsing(width: int, height: int) -> Iterator[Browser]:
    """Chromium with a new profile, closed again afterwards."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(TIMEOUT_MS)
        yield Browser(page)
        chromium.close()
