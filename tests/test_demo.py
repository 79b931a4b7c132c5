"""The demo page in a real browser: upload, top-k, both pictures. Without Gradio it says how to get it."""

from __future__ import annotations

import importlib.util
import shutil
import sys

import pytest
import torch
from PIL import Image

from vmamba import demo
from vmamba.image_model import ImageModel, from_network
from vmamba.models.vssm import VSSM

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
absent = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]


@pytest.fixture
def opened() -> ImageModel:
    torch.manual_seed(0)
    found = from_network(VSSM(depths=(1, 1), dims=8, num_classes=4), "cpu")
    found.class_names = ["ant", "bee", "cat", "dog"]
    return found


def test_the_answer(opened):
    picture = Image.linear_gradient("L").convert("RGB")
    for kind in (demo.CLASS, demo.FIELD):
        classes, map_ = demo.answer(opened, picture, kind, 3)
        assert len(classes) == 3 and 0 < sum(classes.values()) <= 1 and map_.size == (224, 224)
    assert demo.answer(opened, None, demo.CLASS, 3) == ({}, None)


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "model, weights: name a model"),
        (["--weights", "none.pth"], "none.pth"),
        (["--weights", "x", "--port", "0"], "--port 0"),
        (["--weights", "x", "--topk", "0"], "--topk 0"),
    ],
)
def test_bad_words(capsys, argv, words):
    assert demo.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_without_gradio_it_says_how_to_get_it(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"pip install 'vmamba\[demo\]'"):
        demo.build_page(opened, "Demo")


@pytest.mark.slow
@pytest.mark.skipif(bool(absent) or CHROMIUM is None, reason=f"needs {absent or 'a Chromium'}")
def test_the_page_in_a_browser(opened, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "gradient.png")
    page = demo.build_page(opened, "VMamba: small", top_k=3)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", server_port=None)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            tab = browser.new_page()
            faults: list[str] = []
            tab.on("pageerror", lambda error: faults.append(str(error)))
            tab.goto(address, timeout=120_000)
            tab.get_by_role("button", name="Classify").click()
            expect(tab.get_by_text("Choose an image first.")).to_be_visible(timeout=60_000)
            tab.set_input_files("input[type=file]", tmp_path / "gradient.png")
            expect(tab.locator("img[alt], .image-frame img").first).to_be_visible(timeout=60_000)
            shown = tab.locator("#gradient img")
            addresses = ["none"]
            for kind in (demo.CLASS, demo.FIELD):
                tab.get_by_label(kind).check()
                tab.get_by_role("button", name="Classify").click()
                expect(shown).to_be_visible(timeout=60_000)
                expect(shown).not_to_have_attribute("src", addresses[-1], timeout=60_000)
                expect(tab.locator("#classes")).to_contain_text("%", timeout=60_000)
                addresses.append(shown.get_attribute("src"))
            text = tab.locator("#classes").inner_text()
            assert sum(name in text for name in opened.class_names) == 3 and not faults
            tab.screenshot(path=tmp_path / "page.png", full_page=True)
            browser.close()
    finally:
        page.close()
    assert (tmp_path / "page.png").stat().st_size > 10_000
