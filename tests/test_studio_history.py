"""The page's history in a real browser: keeping, searching, and more like what is kept."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from browser import PHONE, Page, launched
from running_server import Server

from unidiffuser.server.taste import NEEDED

SIZES, SHAPES = ("small", "medium", "large"), ("circle", "square", "star", "triangle")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:
    found = Page(browser, server)
    yield found
    found.close()
    for one in server.get("/api/kept").json()["kept"]:
        server.http.delete(f"/api/jobs/{one['job']}/samples/{one['sample']}/keep")
    assert (found.faults, found.strangers) == ([], [])


def shots(page: Page) -> list[str]:
    """The ids of the jobs in the strip."""
    return page.page.eval_on_selector_all("#film .shot", "all => all.map((one) => one.dataset.id)")


def strip_is(page: Page, *names: str) -> None:
    """Wait until the strip holds these jobs in this order."""
    script = "(names) => [...document.querySelectorAll('#film .shot')].map((one) => one.dataset.id).join() === names"
    page.page.wait_for_function(script, arg=",".join(names))


def test_a_sample_is_kept_by_star_and_by_key_and_stays_so(page: Page, server: Server) -> None:
    assert page.at("star").is_hidden()
    page.write("a large red circle")
    page.set(n=2)
    name = page.go()["id"]
    star, shot = page.at("star"), page.page.locator(f'.shot[data-id="{name}"]')
    assert star.get_attribute("aria-pressed") == "false" and shot.get_attribute("data-kept") == "false"
    page.at("cards").focus()
    page.page.keyboard.press("]")
    page.page.keyboard.press("k")
    page.page.wait_for_selector('[data-testid="star"][aria-pressed="true"]')
    assert server.get("/api/kept").json()["kept"] == [{"job": name, "sample": 1, "kept": True}]
    assert "kept" in shot.get_attribute("aria-label")
    page.page.keyboard.press("[")
    page.page.wait_for_selector('[data-testid="star"][aria-pressed="false"]')  # the other sample is not
    page.reload()
    page.wait()
    assert shot.get_attribute("data-kept") == "true"
    page.page.keyboard.press("]")
    page.page.wait_for_selector('[data-testid="star"][aria-pressed="true"]')
    star.click()
    page.page.wait_for_selector('[data-testid="star"][aria-pressed="false"]')
    assert server.get("/api/kept").json()["kept"] == []


def test_the_history_is_searched_by_words_and_by_what_is_kept(page: Page, server: Server) -> None:
    made = [server.submit({"names": ["image"], "given": {"text": f"a teal {x}"}, "steps": 1}) for x in SHAPES[:3]]
    for name in made:
        server.over(name)
        server.http.put(f"/api/jobs/{name}/samples/0/keep")
    page.reload()
    before = shots(page)
    page.page.keyboard.press("/")
    page.page.keyboard.type("teal squ")
    first = "(name) => document.querySelector('#film .shot')?.dataset.id === name"
    page.page.wait_for_function(first, arg=made[1])
    page.at("only-kept").check()
    strip_is(page, made[1], made[2], made[0])  # the one with both words, then the newest
    assert page.at("found").inner_text() == "3 found"
    assert page.violations() == []
    page.at("shot").click()
    page.page.wait_for_function("(name) => location.hash === `#job=${name}`", arg=made[1])
    assert page.at("text-text").input_value() == "a teal square"
    page.at("star").click()
    strip_is(page, made[2], made[0])
    page.at("words").fill("xylophone")
    strip_is(page)
    page.at("found").filter(has_text="Nothing found").wait_for()
    page.at("only-kept").uncheck()
    page.at("words").focus()
    page.page.keyboard.press("Escape")
    page.page.wait_for_function(first, arg=before[0])
    assert shots(page)[: len(before)] == before and page.at("found").inner_text() == ""
    assert "teal" not in server.log()


def test_more_like_what_is_kept_is_off_until_there_is_enough_and_then_proposes(page: Page, server: Server) -> None:
    page.at("tab-more-like-kept").click()
    taste = page.at("taste")
    taste.filter(has_text=f"Off: keep {NEEDED} more samples with words").wait_for()
    assert page.at("propose").is_disabled() and taste.get_attribute("data-state") == "off"
    things = [f"{size} {{}} {x}" for size in SIZES for x in SHAPES][: NEEDED // 2]
    job = {"names": ["image"], "n": 2, "steps": 1}
    kept, left = (
        [server.submit({**job, "given": {"text": f"a {thing.format(colour)}"}}) for thing in things]
        for colour in ("red", "blue")
    )
    assert all(server.over(name)["state"] == "done" for name in (*kept, *left))
    for name in kept:
        for k in range(2):
            assert server.http.put(f"/api/jobs/{name}/samples/{k}/keep").status_code == 200
    started = time.monotonic()
    page.at("tab-more-like-kept").click()
    page.at("tab-more-like-kept").click()
    taste.filter(has_text="Learning").wait_for()
    assert server.get("/health").json()["status"] == "ok" and page.at("propose").is_disabled()
    page.page.wait_for_selector('[data-testid="taste"][data-state="on"]')
    assert "% of the time" in taste.inner_text() and time.monotonic() - started < 60
    told = page.page.locator("#panel").inner_text()
    assert "Kept more often with: red" in told and "Less often with: blue" in told
    page.page.get_by_test_id("liked").first.wait_for()
    count = len(server.get("/api/jobs?limit=200").json()["jobs"])
    page.at("propose").click()
    proposal = page.at("proposal")
    proposal.wait_for()
    scores = server.post("/api/taste/rank", {"sentences": ["a red ring", "a blue ring"]}).json()["ranked"]
    assert [one["sentence"] for one in scores] == ["a red ring", "a blue ring"]
    assert len(server.get("/api/jobs?limit=200").json()["jobs"]) == count  # what was drawn to choose from is forgotten
    assert page.violations() == []
    said = proposal.inner_text()
    proposal.click()
    page.page.wait_for_function("(said) => document.querySelector('[data-testid=text-text]').value === said", arg=said)
    assert page.at("given-text").is_checked() and page.at("sampled-image").is_checked()
    page.page.get_by_test_id("liked").first.click()
    page.page.wait_for_function("() => location.hash.startsWith('#job=')")
    assert "blue" in page.at("text-text").input_value()


def test_it_fits_a_phone(browser: Any, server: Server) -> None:
    page = Page(browser, server, size=PHONE)
    page.at("tab-more-like-kept").click()
    page.at("taste").filter(has_text="Off").wait_for()
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.violations() == []
    page.close()


def test_keeping_over_http(server: Server) -> None:
    name = server.submit({"names": ["image"], "given": {"text": "a large red circle"}, "steps": 1})
    server.over(name)
    place = f"/api/jobs/{name}/samples"
    for path, status in [
        (f"{place}/1/keep", 404), (f"{place}/00/keep", 422), (f"{place}/-1/keep", 422), (f"{place}/99999/keep", 422),
        (f"/api/jobs/{'f' * 32}/samples/0/keep", 404),
    ]:  # fmt: skip
        assert server.http.put(path).status_code == status, path
    for _ in range(2):
        assert server.http.put(f"{place}/0/keep").json() == {"job": name, "sample": 0, "kept": True}
    found = server.post("/api/search", {"words": "", "kept": True}).json()
    assert found["total"] == 1 and found["jobs"][0]["id"] == name
    assert server.http.delete(f"{place}/0/keep").json()["kept"] is False
    assert server.get("/api/kept").json() == {"kept": []}
    mistyped = server.post("/api/search", {"word": "red"})
    assert mistyped.status_code == 422 and "did you mean 'words'" in mistyped.json()["error"]["message"]
    assert server.post("/api/taste/rank", {"sentences": []}).status_code == 422
    running = server.submit({"names": ["image"], "steps": 1000, "n": 16, "seed": 1})
    assert server.http.put(f"/api/jobs/{running}/samples/0/keep").status_code == 409
    server.http.delete(f"/api/jobs/{running}")
    server.over(running)
