"""The report is one page that needs nothing else, and a browser shows all of it."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
import shutil

import pytest
from PIL import Image

from analyze import report
from analyze.output import Analysis, as_text, cell
from analyze.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
absent = [name for name in ("playwright",) if importlib.util.find_spec(name) is None]


def test_the_page_says_what_it_is_given(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    rows = [{"model": "<b>", "images/s": 12345.678, "note": None}] + [{"model": str(i), "more": 1} for i in range(30)]
    found = Analysis("erf", "Field & more", "by hand", {'a "picture"': tmp_path / "a.png"}, {"Table": rows})
    text = page("Title <x>", {"model": "m"}, [found], {"Maps": "no scan"}, {"torch": "2"})
    assert "Title &lt;x&gt;" in text and "Field &amp; more" in text and "&lt;b&gt;" in text and "<b>" not in text
    assert "12,346" in text and "Maps is left out: no scan" in text and "Method: by hand" in text
    assert "<details>" in text and "alt='a &quot;picture&quot;'" in text
    image = re.search(r"data:image/png;base64,([^']+)", text)
    assert image and Image.open(io.BytesIO(base64.b64decode(image[1]))).size == (8, 6)
    assert not re.search(r"(?:src|href)=['\"](?!data:|#)", text)


def test_cells():
    assert [cell(v) for v in (None, 0.123456, 12, 1234567, True, "x", 1e-9)] == [
        "-", "0.1235", "12", "1,234,567", "True", "x", "1e-09",
    ]  # fmt: skip
    assert as_text([{"a": 1}, {"b": "xy"}]) == "a  b\n1  -\n-  xy"


@pytest.fixture(scope="module")
def written(tmp_path_factory, small_weights):
    """The report of the small checkpoint, whose run has a table of its epochs."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copy(small_weights, folder / "best.pth")
    (folder / "metrics.csv").write_text("epoch,lr,train_loss,val_loss,acc1\n0,0.1,2.0,1.9,40.0\n1,0.2,1.5,1.4,50.0\n")
    argv = ["--weights", str(folder / "best.pth"), "--count", "1", "--quick", "--out", str(folder / "out")]
    assert report.main(argv) == 0
    return folder / "out" / report.PAGE


@pytest.mark.slow
def test_the_report_of_a_checkpoint(written):
    text = written.read_text()
    for name, title in report.TITLES.items():
        assert f"id='{name}'" in text and title in text, name
        assert (written.parent / f"{name}.json").is_file() and (written.parent / f"{name}.png").is_file()
    assert "is left out" not in text and "GFLOPs" in text and "rollout" in text and "trained/best" not in text
    assert text.count("<img ") == len(report.TITLES) and text.count("Method: ") == len(report.TITLES)
    assert "torch" in text.partition("id='environment'")[2]


def test_what_a_model_does_not_have_is_said(tmp_path, monkeypatch):
    from analyze.subject import open_subject

    subject = open_subject("test_resnet", None, (32, 32), "cpu")
    every = report.tasks

    def few(*arguments):
        return {name: task for name, task in every(*arguments).items() if name in ("attention", "flops")}

    monkeypatch.setattr(report, "tasks", few)
    text = report.write_report(subject, {"grey": Image.new("RGB", (40, 40))}, tmp_path).read_text()
    assert "Attention maps of the scans is left out: model: ResNet has no scan" in text and "id='flops'" in text


@pytest.mark.slow
@pytest.mark.skipif(bool(absent) or CHROMIUM is None, reason=f"needs {absent or 'a Chromium'}")
def test_the_page_in_a_browser(written, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page()
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        tab.on("requestfailed", lambda request: faults.append(request.url[:80]))
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(written.as_uri(), timeout=60_000)
        widths = tab.eval_on_selector_all("img", "images => images.map(i => i.complete ? i.naturalWidth : 0)")
        assert len(widths) == len(report.TITLES) and min(widths) > 100
        assert not [url for url in asked if not url.startswith(("file:", "data:"))] and not faults
        assert tab.locator("h2").count() == len(report.TITLES) + 1
        tab.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert (tmp_path / "page.png").stat().st_size > 50_000
