"""A real run's HTML report, opened from a file in a real browser without network."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from corrigenda.reports.content import build_report
from corrigenda.reports.page import render_page
from corrigenda.run import runner
from corrigenda.run.spec import RunSpec

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), "")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no Chromium here (Debian: apt install chromium)"),
]


def test_the_page_shows_tables_and_figures(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the extra `report` is not installed")
    specs = [
        RunSpec(
            editor={"name": method},
            benchmark={"name": "pocketedit", "limit": 3},
            regime={"kind": "sequential", "checkpoints": (1, 3)},
            ask={"roles": ("reliability", "generalization", "locality")},
        )
        for method in ("ultraedit", "ft-m")
    ]
    made = build_report(runner.run_all(specs, folder=tmp_path / "runs"))
    file = tmp_path / "report.html"
    file.write_text(render_page(made), encoding="utf-8")
    dom = browse(tmp_path, file, "--dump-dom")
    assert "reliability@greedy" in dom
    assert dom.count("<svg") >= 4
    picture = tmp_path / "page.png"
    browse(tmp_path, file, f"--screenshot={picture}", "--window-size=1200,2400")
    pixels = list(image.open(picture).convert("RGB").resize((300, 600)).getdata())
    dark = sum(max(one) < 120 for one in pixels)
    coloured = sum(max(one) - min(one) > 40 for one in pixels)
    assert dark > 0.002 * len(pixels)
    assert coloured > 0.001 * len(pixels)


def browse(folder, file, *flags):
    """Run Chromium once and return what it prints."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout
