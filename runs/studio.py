"""docs/studio.png: the page with a model, as a visitor sees it.

    python runs/studio.py [--model MODEL] [--out docs/studio.png]

It needs the extras [serve] and [browser], and a Chromium.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from socket import socket

from playwright.sync_api import Page, sync_playwright

TEXT = "a large red circle above a small blue square"
SEEDS = (4, 9, 16, 20)


def run(page: Page, seed: int, n: int = 1) -> None:
    """One run of the cards, to its end."""
    page.get_by_test_id("seed").fill(str(seed))
    page.get_by_test_id("set-n").fill(str(n))
    before = page.url
    page.get_by_test_id("go").click()
    page.wait_for_function("(before) => location.href !== before", arg=before)
    page.wait_for_selector('body[data-state="done"]')
    page.wait_for_selector('[data-testid="cancel"]', state="hidden")


def shoot(url: str, out: Path, chromium: str) -> None:
    """A history of some runs, a dream of both cards, and the picture of it."""
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce")
        page.goto(url)
        page.wait_for_selector('body[data-ready="true"]')
        page.get_by_test_id("more").click()
        page.get_by_test_id("text-text").fill(TEXT)
        for seed in SEEDS[:-1]:
            run(page, seed)
        page.get_by_test_id("sampled-text").check()
        run(page, SEEDS[-1], 4)
        page.get_by_test_id("more").click()
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(1200)
        page.screenshot(path=str(out))
        browser.close()


def main() -> int:
    """Serve the model, take the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="scenes", help="a model in the box, or a folder (default: scenes)")
    parser.add_argument("--out", type=Path, default=Path("docs/studio.png"))
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("there is no Chromium here; install one", file=sys.stderr)
        return 1
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "unidiffuser", "serve", "--port", str(port), "--model", args.model]
        server = subprocess.Popen([*command, "--data-dir", folder], stderr=subprocess.PIPE, text=True)
        try:
            told = next((line for line in server.stderr or () if "studio is at" in line or "unidiffuser:" in line), "")
            if "studio is at" not in told:
                print(told.strip(), file=sys.stderr)
                return 1
            shoot(f"http://127.0.0.1:{port}", args.out, chromium)
        finally:
            server.terminate()
            server.wait(60)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
