"""What people do with the app."""

import base64
import copy
import io
import itertools
import json
import re
import time
import urllib.request

import av
import pytest

pytest.importorskip("playwright")
from playwright.sync_api import expect

pytestmark = [pytest.mark.ray, pytest.mark.browser]
LIMIT_S = 240
VERDICT = re.compile("^(Fake|Real|Unsure)$")
HOSTILE = f"<img src=x onerror=alert(1)>\u202egpj.{'n' * 300}.mp4"


@pytest.fixture(scope="module", autouse=True)
def _patience():
    expect.set_options(timeout=1000 * LIMIT_S)


@pytest.fixture(scope="module")
def done(app, clip):
    """What the app tells of a video that it has examined."""
    request = urllib.request.Request(f"{app}api/videos?name=clip.mp4", clip.read_bytes(), method="POST")
    with urllib.request.urlopen(request) as answer:
        address = f"{app}api/videos/{json.load(answer)['id']}"
    deadline = time.monotonic() + LIMIT_S
    while True:
        with urllib.request.urlopen(address) as answer:
            status = json.load(answer)
        if status["state"] == "done":
            return status
        assert status["state"] != "failed", status
        assert time.monotonic() < deadline, status
        time.sleep(0.2)


def choose(page, content, name="clip.mp4"):
    page.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": content})


def instead(page, status, **changes):
    """The page is told this of a video, instead of what the app says."""
    answer = json.dumps(copy.deepcopy(status) | changes)
    reply = {"body": answer, "content_type": "application/json"}
    page.route(f"**/api/videos/{status['id']}", lambda route: route.fulfill(**reply))


def until(happened):
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def now(page):
    return page.locator("video").evaluate("video => video.currentTime")


def tab_to(page, selector):
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by keyboard")


def test_from_a_file_to_its_removal(visit, clip):
    page = visit()
    choose(page, clip.read_bytes(), HOSTILE)
    expect(page.locator("#work-title")).to_contain_text("<img src=x onerror=alert(1)>\\u202egpj.nnn")
    expect(page.locator("#verdict-word")).to_have_text(VERDICT)
    assert page.locator("img[src=x]").count() == 0
    about = page.locator("#about-video").inner_text()
    assert "<img src=x onerror=alert(1)>\\u202egpj.nnn" in about
    assert "320 \N{MULTIPLICATION SIGN} 240, 2.0 s" in about
    assert page.evaluate("document.activeElement.id") == "verdict-word"

    page.locator("video").click()
    until(lambda: now(page) > 0.3)
    until(lambda: float(page.locator("#slider").get_attribute("aria-valuenow")) > 0)
    page.locator("video").evaluate("video => video.pause()")
    width_px = page.locator("#slider").bounding_box()["width"] - 42 - 76  # of the plot, without its margins
    page.locator("#slider").click(position={"x": 42 + 0.75 * width_px, "y": 90})
    until(lambda: abs(now(page) - 1.5) < 0.02)
    assert page.locator("#slider").get_attribute("aria-valuetext").startswith("1.5 s: face 1 0.")
    page.locator("#faces button").first.click()
    until(lambda: now(page) < 0.1)

    page.locator("#values summary").click()
    rows = page.locator("#values tbody tr")
    with page.expect_download() as download:
        page.get_by_text("Verdict (JSON)").click()
    verdict = json.loads(download.value.path().read_text())
    assert rows.count() == len(verdict["timeline"]) > 8
    assert page.locator("#verdict-word").inner_text().lower() == verdict["verdict"]
    assert page.locator("#facts").inner_text().count(verdict["detector"]["model_id"]) == 1
    assert page.locator("#synthetic").is_visible()

    fragment = page.evaluate("location.hash")
    page.reload()
    expect(page.locator("#verdict-word")).to_have_text(VERDICT)
    page.locator("#remove").click()
    page.locator("#remove-it").click()
    expect(page.locator("#trouble-title")).to_have_text("Removed")
    assert page.evaluate("location.hash") == ""
    page.may_fail.append("/api/videos/")
    page.goto(page.url + fragment)
    expect(page.locator("#trouble-title")).to_have_text("There is no result at this address")


def test_a_dropped_picture(visit, clip):
    with av.open(str(clip)) as container:
        picture = io.BytesIO()
        next(container.decode(video=0)).to_image().save(picture, "JPEG")
    page = visit()
    make = "text => { const all = new DataTransfer();"
    make += "all.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt())], 'face.jpg')); return all }"
    files = page.evaluate_handle(make, base64.b64encode(picture.getvalue()).decode())
    page.dispatch_event("footer", "drop", {"dataTransfer": files})  # anywhere will do
    expect(page.locator("#verdict-word")).to_have_text(VERDICT)
    until(lambda: page.locator("#media img").evaluate("image => image.naturalWidth") == 320)
    assert page.locator("#chart").is_hidden()
    assert page.locator("#faces li").count() == 1


def test_by_keyboard_alone(visit, clip):
    page = visit()
    page.on("filechooser", lambda chooser: chooser.set_files(clip))  # from now on: it takes time to be heard of
    tab_to(page, "#file")
    assert page.locator("#drop").evaluate("zone => getComputedStyle(zone).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#verdict-word")).to_be_focused()
    tab_to(page, "#slider")
    page.keyboard.press("ArrowRight")
    until(lambda: now(page) > 0.1)
    first = now(page)
    page.keyboard.press("End")
    until(lambda: now(page) > 1.9)
    page.keyboard.press("Home")
    until(lambda: now(page) < first)
    text = page.locator("#slider").get_attribute("aria-valuetext")
    assert re.fullmatch(r"0\.0 s: face 1 [01]\.\d\d (fake|real|unsure)", text)
    tab_to(page, "summary")
    page.keyboard.press("Enter")
    expect(page.locator("#values table")).to_be_visible()
    tab_to(page, "#faces button")
    tab_to(page, "#remove")
    page.keyboard.press("Enter")
    tab_to(page, "#remove-it")
    page.keyboard.press("Enter")
    expect(page.locator("#trouble-title")).to_be_focused()
    tab_to(page, "#trouble-actions button")
    page.keyboard.press("Enter")
    expect(page.locator("#drop")).to_be_visible()


def test_a_text_file(visit):
    page = visit()
    choose(page, b"no video at all", "notes.txt")
    expect(page.locator("#trouble-title")).to_have_text("This file cannot be read as a video")
    expect(page.locator("#trouble-detail")).to_contain_text("notes.txt")
    page.get_by_role("button", name="Choose another file").click()
    expect(page.locator("#drop")).to_be_visible()


def test_files_that_are_not_sent(visit):
    page = visit()
    for content, title in ((b"0" * 1_000_001, "This file is too large"), (b"", "This file cannot be read")):
        choose(page, content, HOSTILE)
        expect(page.locator("#trouble-title")).to_have_text(title)
        expect(page.locator("#trouble-detail")).to_contain_text("<img src=x onerror=alert(1)>\\u202egpj.nnn")
        page.get_by_role("button", name="Choose another file").click()
    assert [method for method, _ in page.sent if method != "GET"] == []


def test_a_file_that_the_server_refuses(visit):
    page = visit()
    page.evaluate("about.limits.max_upload_mb = 10")
    page.may_fail.append("/api/videos")
    choose(page, b"0" * 1_000_001)
    expect(page.locator("#trouble-title")).to_have_text("This file is too large")


def test_progress_and_cancel(visit, done):
    page = visit()
    instead(page, done, state="waiting", ahead=3, progress=0.0, result=None)
    page.goto(f"{page.url}#{done['id']}")
    expect(page.locator("#work-note")).to_have_text("3 videos are before yours.")
    assert page.locator("#bar").get_attribute("value") is None
    instead(page, done, state="faces", progress=0.3, result=None)
    expect(page.locator("#work-stage")).to_have_text("Looking for faces")
    expect(page.locator("#stages [aria-current]")).to_have_attribute("data-stage", "faces")
    assert page.locator("#bar").evaluate("bar => bar.value") == 0.3
    expect(page.locator("#news")).to_have_text("Looking for faces, 25 %")
    page.route("**/api/videos/*", lambda route: route.fulfill(status=204))  # the video is needed by other tests
    page.locator("#cancel").click()
    expect(page.locator("#drop")).to_be_visible()
    assert ("DELETE", f"{page.url}api/videos/{done['id']}") in page.sent


def test_a_full_queue_and_a_lost_connection(visit, done):
    page = visit()
    page.may_fail.append("/api/videos")
    replies = [
        {"status": 503, "headers": {"Retry-After": "1"}, "json": {"detail": "full"}},
        {"status": 202, "json": {"id": done["id"], "url": "", "expires_at": done["expires_at"]}},
    ]
    page.route("**/api/videos?name=*", lambda route: route.fulfill(**replies.pop(0)))
    page.route(f"**/api/videos/{done['id']}", lambda route: route.abort())
    choose(page, b"0")
    expect(page.locator("#news")).to_contain_text("The server is busy")
    expect(page.locator("#work-note")).to_contain_text("connection to the server was lost")
    page.unroute(f"**/api/videos/{done['id']}")
    expect(page.locator("#verdict-word")).to_have_text(VERDICT)


def views(done):
    """Every sort of result: its name, and what of the status differs."""
    result = done["result"]
    found = {}
    for verdict, share in (("fake", 0.97), ("real", 0.04), ("unsure", 0.4)):
        second = result["tracks"][0] | {"track": 2, "verdict": "fake", "probability": 0.8}
        tracks = [result["tracks"][0] | {"verdict": verdict, "probability": share}, second]
        later = [one | {"track": 2, "probability": 0.8} for one in result["timeline"]]
        changed = {"verdict": verdict, "probability": share, "tracks": tracks, "timeline": result["timeline"] + later}
        found[verdict] = {"result": result | changed}
    nothing = {"status": "no_face", "verdict": None, "probability": None, "tracks": [], "timeline": []}
    found["no face"] = {"result": result | nothing | {"annotated": None}}
    found["failed"] = {"state": "failed", "result": None, "error": {"status": "decode_error", "message": "e" * 200}}
    found["working"] = {"state": "drawing", "progress": 0.7, "result": None}
    return found


@pytest.mark.parametrize(("scheme", "width_px"), [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 320)])
def test_every_view_is_legible(visit, done, scheme, width_px):
    """Contrast as WCAG 2.2, 1.4.3 asks; nothing wider than the display (1.4.10); headings in order."""
    page = visit(color_scheme=scheme, viewport={"width": width_px, "height": 800})
    home = page.url
    check(page, width_px)
    words = {"fake": "Fake", "real": "Real", "unsure": "Unsure", "no face": "No face found"}
    for view, changes in views(done).items():
        page.goto(home)
        instead(page, done, name=HOSTILE, **changes)
        page.goto(f"{home}#{done['id']}")
        if view in words:
            expect(page.locator("#verdict-word")).to_have_text(words[view])
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            if view != "no face":
                expect(page.locator("#values table")).to_be_visible()
                expect(page.locator("#slider .line")).to_have_count(2)
        else:
            expect(page.locator("#trouble" if view == "failed" else "#work")).to_be_visible()
        check(page, width_px)
    page.goto(home)
    expect(page.locator("#drop")).to_be_visible()


def check(page, width_px):
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    texts = page.evaluate(TEXTS)
    assert not any("\u202e" in one["text"] for one in texts)
    assert len(texts) > 8
    assert [one for one in texts if contrast(one["colour"], one["background"]) < 4.5] == []
    headings = page.evaluate(HEADINGS)
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def contrast(one, other):
    dark, bright = sorted(luminance(colour) for colour in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour):
    red, green, blue, *alpha = (float(value) for value in re.findall(r"[\d.]+", colour))
    assert alpha in ([], [1]), f"not opaque: {colour}"
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (red / 255, green / 255, blue / 255)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# The levels of those that are seen.
HEADINGS = """[...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
    .filter(one => one.checkVisibility()).map(one => Number(one.tagName[1]))"""
# Every text that is seen, with its colour and that of what is behind it.
TEXTS = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.data, element = walker.currentNode.parentElement;
        if (!text.trim() || !element.checkVisibility() || element.closest(".sr, noscript")) continue;
        const style = getComputedStyle(element);
        let behind = element;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const colour = element.closest("svg") ? style.fill : style.color;
        found.push({text, colour, background: getComputedStyle(behind).backgroundColor});
    }
    return found;
}"""
