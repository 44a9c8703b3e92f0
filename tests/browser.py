"""A real browser for the tests of the page: Chromium without a window, which may speak to our server alone."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running_server import Server

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
DESK, PHONE, WALL = (1280, 900), (320, 640), (3840, 2160)
SETTLED = "() => document.getAnimations().length === 0"


@contextmanager
def launched() -> Iterator[Any]:
    """The browser, or a skipped test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="the extra [browser] is not installed")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("no chromium is installed")
    with api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Page:
    """One visitor, with what went wrong on the way."""

    def __init__(self, browser: Any, server: Server, size: tuple[int, int] = DESK, **options: Any) -> None:
        self.server = server
        viewport = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        self.faults: list[str] = []
        self.strangers: list[str] = []
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.open()

    def _route(self, route: Any) -> None:
        if route.request.url.startswith((self.server.url, "data:", "blob:")):
            route.continue_()
        else:
            self.strangers.append(route.request.url)
            route.abort()

    def open(self) -> None:
        self.page.goto(self.server.url)
        self.page.wait_for_selector('body[data-ready="true"]')

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector('body[data-ready="true"]')

    def at(self, name: str) -> Any:
        """The control of a test id."""
        return self.page.get_by_test_id(name).first

    def lock(self, **roles: str) -> None:
        for name, role in roles.items():
            self.at(f"{role}-{name}").check()

    def write(self, text: str) -> None:
        self.at("text-text").fill(text)

    def set(self, **settings: object) -> None:
        """Settings of the drawer."""
        if self.at("drawer").is_hidden():
            self.at("more").click()
        for name, value in settings.items():
            self.at(f"set-{name}").fill(str(value))

    def wait(self, state: str = "done") -> None:
        self.page.wait_for_selector(f'body[data-state="{state}"]')
        self.page.wait_for_selector('[data-testid="cancel"]', state="hidden")

    def go(self) -> dict[str, Any]:
        """Press the button and wait for the end; the job."""
        with self.page.expect_response(lambda answer: answer.request.method == "POST") as posted:
            self.at("go").click()
        name = posted.value.json()["id"]
        self.page.wait_for_function("(name) => location.hash === `#job=${name}`", arg=name)
        self.wait()
        return self.server.over(name)

    def drop(self, data: bytes, kind: str = "image/png", name: str = "a.png") -> None:
        """Let a file fall on the page."""
        script = """([encoded, kind, name]) => {
            const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name, { type: kind }));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
        self.page.evaluate(script, [base64.b64encode(data).decode(), kind, name])

    def drop_many(self, count: int) -> None:
        """Let so many files fall on the page."""
        script = """(count) => {
            const data = new DataTransfer();
            for (let k = 0; k < count; k += 1) data.items.add(new File(["x"], `${k}.png`, { type: "image/png" }));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
        self.page.evaluate(script, count)

    def drop_text(self, text: str) -> None:
        """Let text, such as a link, fall on the page."""
        script = """(text) => {
            const data = new DataTransfer();
            data.setData("text/plain", text);
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
        self.page.evaluate(script, text)

    def shoot(self, place: Path) -> None:
        self.page.screenshot(path=str(place))

    def violations(self) -> list[str]:
        """What axe finds wrong."""
        from axe_playwright_python.sync_playwright import Axe

        self.page.wait_for_function(SETTLED)
        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {node['html'][:160]}" for one in found for node in one["nodes"]]

    def close(self) -> None:
        self.context.close()
