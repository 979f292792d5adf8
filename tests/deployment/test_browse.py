"""The page on which hits are confirmed: what it shows, who may ask, what is stored; and a real browser that clicks."""
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults import fault
from upl_reid.core import ConfigError, DataError, RunError
from upl_reid.deployment.browse import (confirm_pair, confirmed_pairs, forget_pairs, make_app, pair_key, pairs_file,
                                        store_answer, BrowsePages)
from upl_reid.deployment.gallery import unit_vectors
from upl_reid.deployment.gallery_homes import open_gallery
from upl_reid.deployment.match_calibration import Calibration

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ["a.png", "b<script>alert(1)<.png", "監控 c.png", 'd"quote\'.png', "e\udcff.png", "f.png"]
CAMERAS = ["door", "yard", "yard", '<b>"hall', "監控", ""]


def filled(home, folder):
    "Six pictures, of which the third is no picture, in five cameras."
    paths = [os.path.join(folder, name) for name in NAMES]
    for i, path in enumerate(paths): Image.new("RGB", (20, 40), (40*i, 90, 200 - 30*i)).save(path)
    Path(paths[2]).write_text("a secret that is no picture")
    x = unit_vectors(np.c_[np.cos(np.arange(6)/4), np.sin(np.arange(6)/4)])
    gallery = open_gallery(home, 2, Calibration(10., -6., (.7, .8, .9, .95, .99)))
    times = ["5", "4", "3", "unknown", "1", ""]
    return gallery.add(x, paths, CAMERAS, times, identities=["Ann", "Ann", "Bea", "", "", ""]), paths


@pytest.fixture
def page(home, tmp_path):
    "The gallery, its paths, its file of answers, and a client that carries the token."
    from fastapi.testclient import TestClient
    gallery, paths = filled(home, tmp_path)
    pairs = tmp_path/"answers.sqlite"
    with TestClient(make_app(gallery, pairs, "token"), base_url="http://127.0.0.1:8000") as client:
        assert client.get("/?token=token").status_code == 200
        yield gallery, paths, pairs, client
    gallery.close()


def test_all_pictures_and_hits_in_the_order_of_time(page):
    gallery, paths, _, client = page
    positions = gallery.positions()
    text = client.get("/").text
    assert [f'href="/hits/{p}"' in text for p in positions] == [True]*6 and "6 pictures" in text
    text = client.get(f"/hits/{positions[0]}").text
    assert re.findall(r'<li id="hit-(\d+)"', text) == [str(positions[i]) for i in (5, 3, 2, 1, 4)]     # by camera, time
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;" in text and "監控 c.png" in text
    assert '<b>"hall' not in text and 'Camera <bdi>監控' in text and "secret" not in text
    chance = Calibration(10., -6., (.7,)).probability(np.cos([.25]))[0]
    assert f"{100*chance:.0f} %" in text and text.count("same person</button>") == 5
    assert not re.search(r'(src|href|action)="(?!/)', text) and str(Path(paths[0]).parent) not in text


def test_thumbnails_are_of_the_gallerys_own_pictures_by_position(page):
    gallery, paths, _, client = page
    positions = gallery.positions()
    good = client.get(f"/thumbnail/{positions[0]}")
    assert good.status_code == 200 and good.content[:2] == b"\xff\xd8" and good.headers["content-type"] == "image/jpeg"
    assert client.get(f"/thumbnail/{positions[2]}").status_code == 404        # its file is no picture
    for wrong in ("999999", "-1"): assert client.get(f"/thumbnail/{wrong}").status_code == 404
    for wrong in ("..%2f..%2fetc%2fpasswd", paths[0], "a.png", "1e3"):
        assert client.get(f"/thumbnail/{wrong}").status_code in (404, 422)
    assert client.get("/hits/999999").status_code == 404


def test_only_requests_with_the_token_to_this_machine_are_answered(page):
    from fastapi.testclient import TestClient
    _, _, pairs, client = page
    stranger = TestClient(client.app, base_url="http://127.0.0.1:8000")
    for path in ("/", "/hits/0", "/thumbnail/0", "/people", "/style.css", "/?token=wrong", "/openapi.json"):
        assert stranger.get(path, follow_redirects=False).status_code == 403
    assert stranger.post("/confirm", data=dict(token="token", first=0, second=1, answer="same")).status_code == 403
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::1]:8000", ""):
        assert client.get("/", headers={"host": host}).status_code == 403, host
    answer = client.get("/", headers={"host": "localhost:1"})
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    first = stranger.get("/?token=token", follow_redirects=False)
    assert first.status_code == 303 and first.headers["location"] == "/"
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    for path in ("/docs", "/openapi.json", "/redoc"): assert client.get(path).status_code == 404
    assert not pairs.exists()


def test_a_new_address_replaces_the_cookie_of_an_earlier_start(page):
    "On the same port the cookie has the same name."
    from fastapi.testclient import TestClient
    _, _, _, client = page
    earlier = TestClient(client.app, base_url="http://127.0.0.1:8000", cookies=dict.fromkeys(client.cookies, "old"))
    assert earlier.get("/", follow_redirects=False).status_code == 403
    first = earlier.get("/?token=token", follow_redirects=False)
    assert first.status_code == 303 and "=token" in first.headers["set-cookie"]


def test_answers_are_stored_shown_and_withdrawn(page):
    gallery, paths, pairs, client = page
    a, b, c = gallery.positions()[:3]
    def answer(**changed):
        form = {**dict(token="token", first=a, second=b, answer="same"), **changed}
        return client.post("/confirm", data=form, follow_redirects=False)
    good = answer()
    assert good.status_code == 303 and good.headers["location"] == f"/hits/{a}#hit-{b}"
    assert answer(second=c, answer="different").status_code == 303
    for wrong in (dict(token="x"), dict(token=""), dict(answer="perhaps"), dict(first="x")):
        assert answer(**wrong).status_code == 403, wrong
    for wrong in (dict(first=999999), dict(second=a)): assert answer(**wrong).status_code == 404, wrong
    found = confirmed_pairs(pairs)
    assert [pair_key(x, y) for x, y in zip(found["first"], found["second"])] == sorted(
        [pair_key(paths[0], paths[1]), pair_key(paths[0], paths[2])])
    assert dict(zip(map(frozenset, zip(found["first"], found["second"])), found.same)) == {
        frozenset(paths[:2]): True, frozenset((paths[0], paths[2])): False}
    text = client.get(f"/hits/{b}").text                    # a pair is one, whichever picture was asked for
    assert f'id="hit-{a}" class="same"' in text and 'aria-pressed="true"' in text
    assert "about 2 pairs" in client.get("/").text
    assert answer(first=b, second=a, answer="different").status_code == 303 and not confirmed_pairs(pairs).same.any()
    assert answer(answer="open").status_code == 303 and len(confirmed_pairs(pairs)) == 1


def test_people_are_timelines_over_cameras(page):
    gallery, _, _, client = page
    text, p = client.get("/people").text, gallery.positions()
    assert re.findall(r"<h2><bdi>(\w+)", text) == ["Ann", "Bea"]
    assert re.findall(r'href="/hits/(\d+)"', text) == [str(p[0]), str(p[1]), str(p[2])]


def test_many_people_have_several_pages_in_natural_order(home):
    gallery = open_gallery(home, 2)
    x = unit_vectors(np.c_[np.cos(np.arange(60)), np.sin(np.arange(60))])
    gallery.add(x, [f"/{i}.png" for i in range(60)], "c", identities=[f"person {60 - i}" for i in range(60)])
    pages = BrowsePages(gallery, Path("none.sqlite"), "token")
    first, second = (re.findall(r"<h2><bdi>person (\d+)", pages.people_page(start)) for start in (0, 50))
    assert first == [str(i) for i in range(1, 51)] and second == [str(i) for i in range(51, 61)]
    assert "60 people" in pages.people_page() and "/people?start=50" in pages.people_page()
    assert "/people?start=0" in pages.people_page(50) and "further" not in pages.people_page(50)
    gallery.close()


def test_answers_about_forgotten_pictures_leave_no_bytes(tmp_path):
    file = tmp_path/"g.pairs.sqlite"
    for i in range(50): confirm_pair(file, f"secret-{i % 5}.jpg", f"other-{i}.jpg", i % 2 == 0)
    assert forget_pairs(file, ["secret-3.jpg", "absent.jpg"]) == 10
    assert b"secret-3" not in file.read_bytes() and b"secret-2" in file.read_bytes()
    assert len(confirmed_pairs(file)) == 40 and os.listdir(tmp_path) == [file.name]
    assert forget_pairs(tmp_path/"absent", ["a"]) == 0 and len(confirmed_pairs(tmp_path/"absent")) == 0
    (tmp_path/"other").write_text("no database, but long enough to be looked at" * 10)
    assert "cannot be read as answers" in fault(confirmed_pairs, tmp_path/"other", error=RunError)
    fault(confirm_pair, file, "a", "a", True)


def test_answers_of_several_processes_are_all_kept(tmp_path):
    file = tmp_path/"g.pairs.sqlite"
    def write(n):
        for i in range(15): confirm_pair(file, f"{n}-{i}", "x", True)
    threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(confirmed_pairs(file)) == 60


def test_a_server_that_is_gone_is_one_sentence(address, tmp_path, monkeypatch):
    from fastapi.testclient import TestClient
    gallery, _ = filled(address, tmp_path)
    with TestClient(make_app(gallery, tmp_path/"p", "token"), base_url="http://127.0.0.1:8000") as client:
        client.get("/?token=token")
        def gone(*_): raise RunError("the server does not answer")
        monkeypatch.setattr(gallery, "_rows", gone)
        answer = client.get("/hits/1")
        assert answer.status_code == 503 and answer.text == "the server does not answer"
    monkeypatch.undo()
    gallery.close()


def test_where_answers_are_kept():
    assert pairs_file("a/g.safetensors") == Path("a/g.pairs.sqlite")
    assert re.fullmatch(r"station-[0-9a-f]{8}\.pairs\.sqlite", str(pairs_file("postgresql://h/d#station")))


def test_an_answer_needs_its_form(tmp_path):
    gallery, _ = filled(tmp_path/"g.safetensors", tmp_path)
    pages = BrowsePages(gallery, tmp_path/"p", "token")
    for form, error in (({}, ConfigError), (dict(token="tokex", first="0", second="1", answer="same"), ConfigError),
                        (dict(token="token", first="0", second="7", answer="same"), DataError)):
        with pytest.raises(error): store_answer(pages, form)


@pytest.fixture
def served(tmp_path):
    "The command itself in a process of its own: its address, and the file of answers."
    gallery, paths = filled(tmp_path/"g.safetensors", tmp_path)
    gallery.commit()
    command = [sys.executable, "-W", "ignore", "-m", "upl_reid.cli", "browse", str(tmp_path/"g.safetensors")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try: yield process.stdout.readline().split()[1], tmp_path/"g.pairs.sqlite", paths
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def test_a_real_browser_clicks_and_types(served, tmp_path):
    "With the mouse: picture, hit, accept. With the keyboard: reject another one. Nothing is loaded from elsewhere."
    if BROWSER is None:
        reason = "no browser on PATH; install one, as in: apt-get install chromium"
        if os.environ.get("CI"): pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright
    address, pairs, paths = served
    asked, base = [], address.split("/?")[0]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        faults = []
        page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
        page.goto(address)
        assert page.url == base + "/" and page.title() == "Pictures"                # the token has left the address
        page.click('a[href="/hits/0"]')
        page.wait_for_url("**/hits/0")                                              # until its pictures are loaded
        headings = page.locator("h2").all_inner_texts()
        assert headings == ["Camera unknown", 'Camera <b>"hall', "Camera yard", "Camera 監控"]
        widths = page.eval_on_selector_all("#hit-1 img", "images => images.map(i => i.naturalWidth)")
        assert widths == [20]                                                       # the thumbnail is there
        page.click('#hit-1 button[value="same"]')
        page.wait_for_selector('#hit-1.same button[aria-pressed="true"]')
        page.goto(base + "/hits/0")
        for _ in range(80):                                                         # tabulator only
            page.keyboard.press("Tab")
            focused = page.evaluate("[document.activeElement.value, document.activeElement.closest('li')?.id]")
            if focused == ["different", "hit-4"]: break
        assert focused == ["different", "hit-4"]
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        page.wait_for_selector("#hit-4.different")
        page.screenshot(path=tmp_path/"page.png", full_page=True)
        unlabelled = page.eval_on_selector_all("button", "all => all.filter(b => !b.getAttribute('aria-label')).length")
        assert unlabelled == 0 and faults == [] and all(url.startswith(base + "/") for url in asked)
        other = browser.new_context().new_page()                                    # another browser has no token
        assert other.goto(base + "/").status == 403
        browser.close()
    found = confirmed_pairs(pairs)
    assert {frozenset((a, b)): s for a, b, s, _ in found.itertuples(index=False)} == {
        frozenset((paths[0], paths[1])): True, frozenset((paths[0], paths[4])): False}
    with pytest.raises(urllib.error.HTTPError, match="403"): urllib.request.urlopen(base + "/")
    if keep := os.environ.get("UPL_REID_SCREENSHOTS"): shutil.copy(tmp_path/"page.png", keep)


def test_what_another_process_forgets_is_not_shown_any_more(home, tmp_path, monkeypatch):
    "A page that is open shows nothing of a forgotten picture, and its forms do not answer about another one."
    monkeypatch.chdir(tmp_path)                             # answers about a database are kept where the command runs
    from fastapi.testclient import TestClient
    from upl_reid.cli import main
    gallery, paths = filled(home, tmp_path)
    if not isinstance(home, str): gallery.commit()
    gallery.close()
    with open_gallery(home) as shown, TestClient(make_app(shown, pairs_file(home), "token"),
                                                 base_url="http://127.0.0.1:8000") as client:
        client.get("/?token=token")
        before = shown.positions()
        old = dict(token="token", first=before[0], second=before[1], answer="same")
        assert client.get(f"/thumbnail/{before[1]}").status_code == 200
        assert main(["forget", str(home), paths[0]]) == 0
        page = client.get("/")
        assert "5 pictures" in page.text and "a.png" not in page.text
        assert client.get(f"/hits/{before[0]}").status_code == client.get(f"/thumbnail/{before[0]}").status_code == 404
        assert client.post("/confirm", data=old, follow_redirects=False).status_code == 404
        assert len(confirmed_pairs(pairs_file(home))) == 0
        links = re.findall(r'href="(/hits/[^"#]+)"', page.text)          # those of the new page lead to the others
        assert len(links) == 5 and len(set(links)) == 5
        for link, path in zip(links, paths[1:]):
            text = client.get(link).text
            assert re.search(r"<title>Hits of (.*)</title>", text)[1] in (
                Path(path).name, "b&lt;script&gt;alert(1)&lt;.png", "d&#34;quote&#39;.png", "e\\udcff.png"), link
            assert "a.png" not in text
        for link in re.findall(r'src="(/thumbnail/[^"]+)"', page.text): client.get(link)
        form = dict(re.findall(r'name="(token|first|second|at)" value="([^"]*)"', client.get(links[0]).text))
        good = client.post("/confirm", data={**form, "answer": "same"}, follow_redirects=False)
        assert good.status_code == 303 and client.get(good.headers["location"].split("#")[0]).status_code == 200
        found = confirmed_pairs(pairs_file(home))
        assert len(found) == 1 and paths[0] not in {*found["first"], *found["second"]}
        if not isinstance(home, str):
            assert client.get(f"/thumbnail/{before[1]}").status_code == 404       # a link from before the change
            home.unlink()
            assert client.get("/").status_code == 404 and "there is no gallery" in client.get("/").text
    left = [p for p in tmp_path.rglob("*") if p.suffix in (".jpg", ".jpeg", ".webp")]
    assert left == []                                                             # no thumbnail was ever stored


def test_a_thumbnail_is_never_of_a_file_that_the_gallery_does_not_name(home, tmp_path):
    "Every number and some names are asked for; only the pictures that entries name come."
    from fastapi.testclient import TestClient
    gallery, paths = filled(home, tmp_path)
    Image.new("RGB", (20, 40), (255, 255, 255)).save(tmp_path/"outside.png")
    with TestClient(make_app(gallery, tmp_path/"p", "token"), base_url="http://127.0.0.1:8000") as client:
        client.get("/?token=token")
        asked = []
        for number in [*range(-3, 60), *gallery.positions()]:
            if client.get(f"/thumbnail/{number}").status_code == 200: asked.append(number)
        assert set(asked) == set(gallery.positions()) - {gallery.positions()[2]}
        for wrong in ("outside.png", "..%2foutside.png", "0/../outside.png", "%00", "0%00", "?path=outside.png", "-0"):
            answer = client.get(f"/thumbnail/{wrong}")
            own = wrong == "-0" and 0 in gallery.positions()
            assert own or answer.headers.get("content-type") != "image/jpeg" or not answer.content, wrong
    gallery.close()
