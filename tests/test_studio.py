"""The page, in a real browser: everything that it promises, done by hand and by keyboard."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from browser import DESK, PHONE, WALL, Page, launched
from running_server import CANARY, Server, running
from tiny_model import saved_model, sounding_model

from unidiffuser.server.store import Row, Store, new_id

TEXT = "a large red circle"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Page]]:
    """Visitors; when they leave, nothing has gone wrong and nobody else was spoken to."""
    visitors: list[Page] = []

    def come(**options: Any) -> Page:
        visitors.append(Page(browser, server, **options))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.close()
        assert visitor.strangers == []
        assert visitor.faults == []


TABS = ["tab-variations", "tab-film-strip", "tab-between", "tab-compare", "tab-grid", "tab-paths"]


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESK, "light"), (WALL, "dark")])
def test_it_fits_and_axe_finds_nothing(visit: Callable[..., Page], size: tuple[int, int], scheme: str) -> None:
    page = visit(size=size, color_scheme=scheme)
    assert page.page.evaluate("document.documentElement.dataset.theme") == scheme
    page.write(TEXT)
    page.go()
    page.set()
    assert page.violations() == []
    for tab in TABS:
        page.at(tab).click()
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        assert size != DESK or page.violations() == [], tab
    page.at("help").click()
    assert page.violations() == []


def test_the_buttons_word_follows_the_locks(visit: Callable[..., Page]) -> None:
    page = visit()
    page.write(TEXT)
    page.go()
    word = page.at("go")
    for image, text, said in [
        ("sampled", "given", "Imagine"),
        ("given", "sampled", "Describe"),
        ("sampled", "sampled", "Dream both"),
        ("given", "given", "Score"),
        ("sampled", "ignored", "Imagine"),
        ("ignored", "sampled", "Write"),
    ]:
        page.lock(image=image, text=text)
        assert word.inner_text() == said
        assert word.is_enabled()
    page.lock(image="ignored", text="ignored")
    assert word.is_disabled() and "nothing to make" in page.at("hint").inner_text()


def test_a_picture_and_words_are_the_servers_and_survive_a_reload(visit: Callable[..., Page], server: Server) -> None:
    page = visit()
    page.lock(image="sampled", text="given")
    page.write(TEXT)
    page.at("seed").fill("7")
    job = page.go()
    assert job["result"]["samples"][0]["pixels"] == server.canary()
    shown = page.at("picture-image").get_attribute("src")
    assert server.picture({"url": shown}).size == (64, 64)
    page.lock(image="given", text="sampled")
    said = page.go()["result"]["samples"][0]["values"]["text"]
    assert page.at("text-text").input_value() == said
    page.reload()
    page.wait()
    assert page.at("text-text").input_value() == said
    assert page.at("sampled-text").is_checked()
    assert page.at("shot").get_attribute("aria-current") == "true"


def test_a_reload_in_the_middle_takes_the_job_up_again(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="sampled")
    page.set(steps=400, n=2)
    page.at("go").click()
    page.page.wait_for_selector('body[data-state="running"]')
    page.reload()
    page.wait("done")
    assert page.page.locator("#tray button").count() == 2


def test_cancel_by_key(visit: Callable[..., Page], server: Server) -> None:
    page = visit()
    page.write(TEXT)
    page.set(steps=1000, n=16)
    page.page.keyboard.press("Control+Enter")
    page.page.wait_for_selector('body[data-state="running"]')
    page.page.keyboard.press("Escape")
    page.wait("cancelled")
    assert server.get("/api/jobs").json()["jobs"][0]["state"] == "cancelled"


def test_a_whole_run_by_keyboard(visit: Callable[..., Page]) -> None:
    page = visit()
    keys = page.page.keyboard
    page.lock(image="sampled", text="given")
    page.write(TEXT)
    page.at("cards").focus()
    keys.press("1")  # from sampled to ignored
    assert page.at("ignored-image").is_checked()
    keys.press("1")
    keys.press("1")
    assert page.at("sampled-image").is_checked()
    before = page.at("seed").input_value()
    keys.press("r")
    assert page.at("seed").input_value() != before
    keys.press("Control+Enter")
    page.wait()
    first = page.page.evaluate("location.hash")
    keys.press("Control+Enter")
    page.page.wait_for_function("(before) => location.hash !== before", arg=first)
    page.wait()
    page.at("cards").focus()
    keys.press("ArrowRight")
    page.page.wait_for_function("(before) => location.hash === before", arg=first)
    keys.press("g")
    assert page.at("go-grid").is_visible()
    keys.press("?")
    assert page.page.locator("dialog[open]").count() == 1
    keys.press("Escape")
    assert page.page.locator("dialog[open]").count() == 0


def test_a_double_click_is_one_job(visit: Callable[..., Page], server: Server) -> None:
    page = visit()
    page.write(TEXT)
    before = server.get("/api/jobs?limit=1").json()["jobs"][0]["created"]
    page.at("go").dblclick(force=True)
    page.wait()
    jobs = server.get("/api/jobs?limit=5").json()["jobs"]
    assert sum(job["created"] > before for job in jobs) == 1


def test_what_is_written_is_never_code(visit: Callable[..., Page]) -> None:
    page = visit()
    page.write('"><img src=x onerror=alert(1)><script>alert(1)</script>')
    page.at("go").click()
    problem = page.at("problem-text")
    problem.filter(has_text="word").wait_for()
    assert page.page.locator("img[src=x], main script").count() == 0
    page.faults[:] = [fault for fault in page.faults if "422" not in fault]  # the browser logs every refusal


def test_a_hole_is_painted_and_filled(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="ignored")
    page.go()
    page.lock(image="given")
    page.at("hole-image").click()
    box = page.at("paint-image").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=4)
    page.page.mouse.up()
    assert page.at("go").inner_text() == "Fill in"
    job = page.go()
    assert list(job["job"]["masks"]) == ["image"] and job["job"]["names"] == ["image"]


def test_words_are_blanked_and_filled(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="ignored", text="given")
    page.write(TEXT)
    page.at("text-text").evaluate("(area) => area.setSelectionRange(2, 7)")
    page.at("blank-text").click()
    assert page.at("text-text").input_value() == "a ___ red circle"
    job = page.go()
    assert job["job"]["given"]["text"] == "a ___ red circle"
    assert page.at("text-text").input_value() == job["result"]["samples"][0]["values"]["text"]


def test_the_path_on_the_plane_is_the_jobs(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="sampled")
    page.set(steps=8)
    page.at("path-first").click()
    path = page.go()["job"]["path"]
    assert path["image"][4] == 0 and path["text"][4] == 1
    handle = page.at("plane-handle")
    handle.focus()
    for _ in range(6):
        page.page.keyboard.press("ArrowUp")
    bent = page.go()["job"]["path"]
    assert bent["text"][4] > bent["image"][4] and bent["text"][-1] == 0
    box = handle.bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 60, box["y"] + 80, steps=5)
    page.page.mouse.up()
    dragged = page.go()["job"]["path"]
    assert dragged != bent and all(a >= b for way in dragged.values() for a, b in pairwise(way))


def test_a_run_is_branched(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="sampled")
    page.set(steps=8)
    page.at("path-together").click()
    first = page.go()["job"]
    page.page.get_by_test_id("trail").nth(2).click()
    assert "branching at step 3" in page.at("unbranch").inner_text()
    page.at("plane-handle").focus()
    page.page.keyboard.press("ArrowLeft")
    second = page.go()["job"]
    assert second["seed"] == first["seed"]
    assert second["path"]["image"][3] == pytest.approx(0.625, abs=1e-6)
    assert second["path"]["image"] != second["path"]["text"]


def test_a_score_is_shown_in_bits_with_its_map_and_the_truth(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="given")
    page.write(TEXT)
    page.go()
    page.lock(image="given", text="given")
    page.set(draws=8)
    job = page.go()
    assert f"± {job['result']['error']:.0f} bits" in page.at("bits").inner_text()
    assert page.page.locator("canvas.map:not([hidden])").count() == 1
    assert page.page.locator("[data-testid=truth] li").count() > 0


def test_looseness_and_variation_reach_the_job(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="given")
    page.write(TEXT)
    page.at("loose-text").fill("0.3")
    assert page.go()["job"]["looseness"] == {"text": 0.3}
    page.at("loose-image").fill("0.5")
    assert page.at("go").inner_text() == "Vary"
    assert page.go()["job"]["looseness"] == {"text": 0.3, "image": 0.5}


def test_our_picture_brings_its_recipe_and_comes_again(visit: Callable[..., Page], server: Server) -> None:
    page = visit()
    value = server.done({**CANARY, "seed": 21})["samples"][0]["values"]["image"]
    page.drop(server.get(value["url"]).content)
    page.at("recalled").wait_for()
    assert page.at("text-text").input_value() == TEXT and page.at("seed").input_value() == "21"
    page.at("reproduce").click()
    page.at("reproduced").wait_for()
    assert page.at("reproduced").inner_text() == "The same pixels again."


def test_what_cannot_be_used_is_said(visit: Callable[..., Page]) -> None:
    page = visit()
    page.drop(b"not a picture", "text/html", "a.html")
    page.at("problem-image").filter(has_text="no PNG").wait_for()
    page.drop(b"\x89PNG\r\n\x1a\nbroken")
    page.at("problem-image").filter(has_text=re.compile("damaged|not a PNG")).wait_for()
    page.faults[:] = [fault for fault in page.faults if "422" not in fault]


def test_every_tab_does_its_work(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="given")
    page.write(TEXT)
    page.go()
    page.at("tab-variations").click()
    page.at("vary").click()
    page.page.wait_for_selector('[data-testid="ring"][data-state="done"]')
    assert page.page.locator("[data-testid=ring] button").count() == 12
    page.at("tab-film-strip").click()
    page.at("rounds").fill("1")
    page.at("walk").click()
    page.page.wait_for_selector('[data-testid="frames"][data-state="done"]')
    assert page.page.locator("[data-testid=frames] figure").count() == 3
    with page.page.expect_download() as saved:
        page.at("panel").get_by_test_id("film-link").click()
    assert saved.value.suggested_filename.endswith(".gif") and Path(saved.value.path()).read_bytes()[:6] == b"GIF89a"
    page.at("tab-between").click()
    page.at("hold-first").click()
    page.go()
    page.at("hold-second").click()
    page.at("go-between").click()
    page.page.wait_for_selector('[data-testid="along"]:not([disabled])')
    before = page.page.locator("#panel .wipe img").get_attribute("src")
    page.at("along").fill("7")
    assert page.page.locator("#panel .wipe img").get_attribute("src") != before
    page.at("tab-compare").click()
    page.at("go-compare").click()
    page.page.wait_for_function(
        "() => document.querySelectorAll('[data-testid=wipe-box] img:not([hidden])').length === 2"
    )
    page.at("tab-grid").click()
    page.at("across").fill("1, 2")
    page.at("down").fill("0, 1")
    page.at("go-grid").click()
    page.page.wait_for_selector('[data-testid="grid"][data-state="done"]')
    page.page.locator("[data-testid=grid] button").nth(1).click()
    assert page.at("seed").input_value() == "2"


def test_the_ways_over_the_plane_are_measured_against_one_another(visit: Callable[..., Page], server: Server) -> None:
    page = visit()
    page.set(steps=4)
    page.at("tab-paths").click()
    page.at("pairs").fill("3")
    page.at("measure").click()
    page.page.wait_for_selector('[data-testid="ways"][data-state="done"]')
    assert page.page.locator("[data-testid=ways] section").count() == 3
    verdict = page.at("verdict").inner_text()
    assert "apart" in verdict or "Too few" in verdict
    jobs = server.get("/api/jobs?limit=3").json()["jobs"]
    assert [job["verb"] for job in jobs] == ["sample"] * 3  # the scores have left the history again
    page.faults[:] = [fault for fault in page.faults if "422" not in fault]  # a sentence that cannot be given
    firsts = {tuple(name for name, way in job["job"]["path"].items() if way[2] == 0) for job in jobs}
    assert firsts == {(), ("image",), ("text",)}


def test_a_run_that_was_seen_is_saved_as_a_film(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="sampled")
    page.set(steps=200)
    page.go()
    with page.page.expect_download() as saved:
        page.page.locator("#settling a").click()
    assert Path(saved.value.path()).read_bytes()[:6] == b"GIF89a"


def test_every_setting_reaches_the_job(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(image="sampled", text="given")
    page.write(TEXT)
    page.set(guidance=1.5, guidance_interval="0.1 – 0.9")
    page.at("set-guidance_against").select_option("unconditional")
    job = page.go()["job"]
    assert (job["guidance"], job["guidance_interval"], job["guidance_against"]) == (1.5, [0.1, 0.9], "unconditional")
    page.reload()
    page.wait()
    page.set()
    assert page.at("set-guidance_interval").input_value() == "0.1 – 0.9"
    assert page.at("set-label").count() == 0 and page.at("set-size").count() == 0  # this model has neither


def test_whatever_falls_on_the_page_is_used_or_said(visit: Callable[..., Page]) -> None:
    page = visit()
    page.drop_many(200)
    page.at("said").filter(has_text="200 files").wait_for()
    page.drop_text("https://example.org/a.png")
    assert page.at("text-text").input_value() == "https://example.org/a.png"
    page.write("x" * 1_000_000)
    page.at("go").click()
    page.at("problem-text").filter(has_text=re.compile("at most|characters|long|word")).wait_for()
    page.faults[:] = [fault for fault in page.faults if "422" not in fault]


def test_a_slider_that_is_dragged_fast_asks_nothing(visit: Callable[..., Page]) -> None:
    page = visit()
    page.lock(text="given")
    page.write(TEXT)
    asked: list[str] = []
    page.page.on("request", lambda request: request.method == "POST" and asked.append(request.url))
    script = """(slider) => { for (let k = 0; k <= 1000; k += 1) {
        slider.value = String((k % 21) / 20);
        slider.dispatchEvent(new Event("input", { bubbles: true }));
    } }"""
    page.at("loose-text").evaluate(script)
    assert page.page.get_by_test_id("loose-text").input_value() == "0.65"
    assert asked == []


def test_a_server_that_starts_again_in_the_middle(browser: Any, tmp_path: Path) -> None:
    model, data = saved_model(tmp_path / "tiny"), tmp_path / "data"
    with running(model, data) as server:
        page = Page(browser, server)
        page.lock(image="sampled", text="sampled")
        page.set(steps=1000, n=8)
        page.at("go").click()
        page.page.wait_for_selector('body[data-state="running"]')
        server.process.kill()
        server.process.wait()
        with running(model, data, port=server.port):
            page.at("retry").wait_for()
            assert page.page.locator("body").get_attribute("data-state") == "interrupted"
        page.close()


def test_a_history_of_ten_thousand_is_walked_with_few_in_the_page(browser: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    store = Store(data)
    result = {"samples": [{"seed": 1, "values": {"text": TEXT}}]}
    job = {"names": ["text"], "given": {}, "second": {}, "masks": {}, "seed": 1}
    for k in range(10_000):
        fields = {"owner": "local", "state": "done", "verb": "sample", "model": "tiny", "job": job, "cost": 1}
        store.add(Row(id=new_id(), created=float(k + 1), finished=float(k + 1), result=result, **fields))  # type: ignore[arg-type]
    store.close()
    with running(saved_model(tmp_path / "tiny"), data) as server:
        page = Page(browser, server)
        film, shots = page.at("film"), page.page.locator(".shot")
        assert shots.count() == 40
        newest = shots.first.get_attribute("data-id")
        for turned in range(1, 13):
            film.evaluate("(strip) => { strip.scrollLeft = strip.scrollWidth; }")
            page.page.wait_for_function("(n) => Number(document.querySelector('#film').dataset.turned) > n", arg=turned)
            assert shots.count() <= 240
        assert page.page.locator(f"[data-id='{newest}']").count() == 0
        oldest = shots.last.get_attribute("data-id")
        page.page.locator(f"[data-id='{oldest}']").click()
        page.page.wait_for_function("(id) => location.hash === `#job=${id}`", arg=oldest)
        for _ in range(20):
            film.evaluate("(strip) => { strip.scrollLeft = 0; }")
            if page.page.locator(f"[data-id='{newest}']").count():
                break
            page.page.wait_for_timeout(100)
        assert shots.first.get_attribute("data-id") == newest and shots.count() <= 240
        page.close()
        assert (page.faults, page.strangers) == ([], [])


def test_a_server_that_is_away_is_told_and_nothing_is_lost(visit: Callable[..., Page]) -> None:
    page = visit()
    page.write("a small blue square")
    page.context.set_offline(True)
    page.at("banner").filter(has_text="cannot be reached").wait_for()
    page.context.set_offline(False)
    page.page.wait_for_selector('[data-testid="banner"]', state="hidden")
    assert page.at("text-text").input_value() == "a small blue square"
    page.faults[:] = [fault for fault in page.faults if "ERR_INTERNET_DISCONNECTED" not in fault]


def test_sounds_and_numbers_have_cards_of_their_own(browser: Any, tmp_path: Path) -> None:
    sounding_model().save(tmp_path / "sounding")
    with running(tmp_path / "sounding", tmp_path / "data") as server:
        page = Page(browser, server)
        page.lock(sound="sampled", vector="sampled", text="ignored")
        job = page.go()
        page.page.wait_for_function("() => document.querySelector('audio').src.startsWith('blob:')")
        drawn = "(canvas) => canvas.getContext('2d').getImageData(0, 0, 640, 160).data.some(Boolean)"
        for name in ("sound", "vector"):
            assert page.at(f"card-{name}").locator("canvas").evaluate(drawn), name
        numbers = [float(number) for number in page.at("numbers-vector").input_value().split(",")]
        assert numbers == pytest.approx(job["result"]["samples"][0]["values"]["vector"], rel=1e-4)
        page.lock(sound="given", vector="sampled")
        again = page.go()
        assert again["job"]["given"]["sound"]["type"] == "audio/wav"
        page.close()
        assert (page.faults, page.strangers) == ([], [])
