"""The server's page in a real browser."""

import json
import re

import pytest

from tests import browser
from tests.serve_process import running
from tests.served_model import CLASSES, encoded, export

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium")

ANSWER = "document.querySelector('#answer').innerText"
SHOWN = "[...document.querySelectorAll('li')].map(row => [row.innerText, row.querySelector('.bar').style.width])"
PASTE = """
const data = new DataTransfer();
data.items.add(new File([new Uint8Array(%s)], "pasted.png"));
dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    export(folder / "tones")
    with running(folder / "tones", folder / "log", "--max_body_mb=0.1") as server:
        yield server


@pytest.fixture
def page(server):
    with browser.page() as page:
        page.open(f"http://127.0.0.1:{server.port}/")
        yield page
        assert not page.errors


@pytest.fixture
def images(tmp_path):
    contents = {
        "dark.jpg": encoded(10),
        "bright.png": encoded(250, "PNG"),
        "text.jpg": b"text",
        "large.jpg": bytes(100_000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def best(page, name):
    """The rows of the answer to an image, as soon as it is there."""
    page.wait_for(f"{ANSWER}.includes('{name}: ')")
    return page.evaluate(SHOWN)


@pytest.mark.slow
def test_images_are_chosen_dropped_and_pasted(page, images):
    text = page.evaluate("document.body.innerText")
    assert all(part in text for part in ("tones", "Version 1", "3 classes", "WebP"))
    page.choose("#file", str(images / "dark.jpg"))
    rows = best(page, "dark.jpg")
    assert rows[0][0].startswith("dark") and {row[0].split("\n")[0] for row in rows} == set(CLASSES)
    for text, width in rows:
        assert float(text.split("\n")[1].rstrip("%")) == pytest.approx(float(width.rstrip("%")), abs=0.06)
    assert page.evaluate("document.querySelector('img').naturalWidth") == 48
    page.drop("#drop", str(images / "bright.png"))
    assert best(page, "bright.png")[0][0].startswith("bright")
    page.evaluate(PASTE % json.dumps(list(encoded(120, "PNG"))))
    assert best(page, "pasted.png")[0][0].startswith("middle")


@pytest.mark.slow
def test_what_cannot_be_used_is_said_in_words(page, images, server):
    for name, words in (("text.jpg", "cannot be used"), ("large.jpg", "too large")):
        page.choose("#file", str(images / name))
        page.wait_for(f"document.querySelector('.error')?.innerText.includes('{words}') && {ANSWER}.includes('{name}')")
        page.wait_for("document.querySelector('img').hidden")  # the browser finds out in its own time
    page.choose("#file", str(images / "dark.jpg"))
    assert best(page, "dark.jpg") and not page.evaluate("document.querySelector('.error')")


@pytest.mark.slow
def test_keys_and_screen_readers(page):
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.id") == "file"
    assert (
        page.evaluate("getComputedStyle(document.querySelector('#drop')).borderStyle") == "solid"
    )  # is seen to be there
    page.press("Tab", 9)
    page.press("Enter", 13, "\r")
    assert page.evaluate("document.querySelector('details').open")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    names = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]}
    assert ("heading", "tones") in names and ("status", "") in names
    assert any(name.startswith("Choose, drop or paste an image") for role, name in names if role == "button")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, scheme):
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    colours = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    text, back = (_luminance([int(value) for value in re.findall("[0-9]+", colour)]) for colour in colours)
    assert (text < back) == (scheme == "light")
    assert (max(text, back) + 0.05) / (min(text, back) + 0.05) > 7  # WCAG's highest level
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def _luminance(colour):
    """Relative luminance as WCAG has it, of 8-bit sRGB."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
