"""The page of hits: one file, nothing from elsewhere, every name as it is."""
import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from upl_reid.deployment.gallery import PAGE_MARK, Gallery, hits_page, short_name, thumbnail
from upl_reid.deployment.match_calibration import Calibration


class Page(HTMLParser):
    "Elements with their attributes, all text, and whether every element is closed in order."
    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.words.append(data)
    def all(self, tag): return [attrs for name, attrs in self.elements if name == tag]


NAMES = ["<script>alert(1)<\u2215script>.png", "摄像头 \"7\" & 8.png", "كاميرا.png", "a'b=c.png"]


@pytest.fixture
def pictures(tmp_path):
    "Pictures with names of every kind, the first one large."
    for i, name in enumerate(NAMES):
        Image.new("RGB", (300, 700) if not i else (16, 32), (60*i, 9, 9)).save(tmp_path/name)
    return [tmp_path/name for name in NAMES]


def page_of(pictures, calibration=None, cameras=("<gate>", "大门", "", "d&d"), **options):
    gallery = Gallery(2, calibration).add([[1, 0], [.8, .6], [0, 1], [.6, .8]], pictures, list(cameras))
    text = hits_page(pictures[:2], gallery.search([[1, 0], [0, 1]], 3), **options)
    return text, Page(text)


def test_every_name_is_shown_and_escaped(pictures):
    text, page = page_of(pictures, without=["", "<gate>"])
    words = "".join(page.words)
    for name in (*NAMES, "<gate>", "大门", "(unknown)", "d&d", "outside camera <gate>"): assert name in words
    assert not page.all("script") and page.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.all("meta")
    assert "width=device-width" in text and PAGE_MARK in text[:300] and text.encode().decode() == text
    assert "1.00" in words and "0.80" in words and " %" not in words
    assert "98 %" in "".join(page_of(pictures, Calibration(10., -6., (.7, .8)))[1].words)


def test_a_page_asks_for_nothing_and_its_pictures_are_small(pictures):
    text, page = page_of(pictures)
    assert len(page.all("img")) == 2*4 and all(attrs["alt"] for attrs in page.all("img"))
    assert {attrs["alt"] for attrs in page.all("img")} >= {f"query: {NAMES[0]}", f"hit 2: {NAMES[1]}"}
    for attrs in page.all("img"):
        kind, data = attrs["src"].split(",")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg;base64" and image.format == "JPEG"
        assert image.height <= 128 and image.width <= 256
    assert not {"link", "script", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert {key for tag, attrs in page.elements for key in attrs} & {"href", "srcset", "data", "onerror"} == set()


def test_pictures_that_are_gone_and_limits(pictures):
    pictures[1].unlink()
    text, page = page_of(pictures, columns=2)
    assert thumbnail(pictures[1]) == "" and "cannot be read" in "".join(page.words)
    assert len(page.all("figure")) == 2*3 and text.count("hit 3") == 0


def test_names_that_are_no_text_and_long_ones(tmp_path):
    import os
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    text = hits_page([path], Gallery(2).add([[1, 0]], [path]).search([[1, 0]], 1))
    assert "udcff.png" in text and text.encode()
    assert short_name("x"*50 + "-last.png") == "xxxxxxx…last.png"[:7] + "…" + "last.png"[-8:]
    assert len(short_name("x"*50)) == 16
