"""What a job made as a moving picture, and the history when there is much of it."""

import io
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from asking import JOBS, refused
from PIL import Image, ImageSequence
from running_server import CANARY, Server, data_url

from unidiffuser.marking import SOURCE_TYPE

pytestmark = pytest.mark.usefixtures("unharmed")

TEXT = "a large red circle"
CHAIN = {"verb": "chain", "names": ["text", "image", "text", "image"], "given": {"text": TEXT}, "seed": 4, "n": 2}


def film(server: Server, name: str, **options: int) -> list[Image.Image]:
    """The frames of a job's film."""
    answer = server.get(f"{JOBS}/{name}/film", params=options)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/gif"
    with Image.open(io.BytesIO(answer.content)) as opened:
        assert opened.format == "GIF" and opened.info["loop"] == 0 and SOURCE_TYPE in str(opened.info["comment"])
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]


def likeness(frame: Image.Image, picture: Image.Image) -> float:
    """The mean difference of a frame's upper part to a picture, of 255."""
    width = frame.width
    large = picture.convert("RGB").resize((width, width), Image.Resampling.BICUBIC)
    differences = [abs(a - b) for a, b in zip(frame.crop((0, 0, width, width)).tobytes(), large.tobytes(), strict=True)]
    return sum(differences) / len(differences)


def done(server: Server, job: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name = server.submit(job)
    ended = server.over(name)
    assert ended["state"] == "done", ended
    return name, ended["result"]


def test_a_chain_moves_link_by_link(server: Server) -> None:
    name, result = done(server, CHAIN)
    for chain in range(2):
        frames = film(server, name, sample=chain)
        links = [row for row in result["samples"] if row["chain"] == chain]
        assert len(frames) == len(links) == 3 and len({frame.size for frame in frames}) == 1
        assert frames[0].width == 256 and frames[0].height > 256  # with room for the words
        last = server.picture(links[-1]["values"]["image"])
        first = server.picture(links[0]["values"]["image"])
        assert 2 * likeness(frames[-1], last) < likeness(frames[-1], first)  # 256 colours are not all of them
    refused(server.get(f"{JOBS}/{name}/film", params={"sample": 2}), 409)


def test_an_interpolation_moves_frame_by_frame(server: Server) -> None:
    ends = [{"image": data_url(Image.new("RGB", (64, 64), colour))} for colour in ("red", "teal")]
    job = {"verb": "interpolate", "names": ["image"], "given": ends[0], "second": ends[1], "frames": 3, "steps": 2}
    name, _ = done(server, job)
    frames = film(server, name)
    assert len(frames) == 3 and frames[0].size == (256, 256)


def test_a_sample_settles_out_of_noise(server: Server) -> None:
    name, result = done(server, {"names": ["image", "text"], "steps": 8, "partials": 3, "seed": 3, "n": 2})
    frames = film(server, name, sample=1)
    assert len(frames) == 4
    assert likeness(frames[-1], server.picture(result["samples"][1]["values"]["image"])) < 16


def test_what_has_no_film_says_so(server: Server) -> None:
    without, _ = done(server, dict(CANARY))
    picture = data_url(Image.new("RGB", (64, 64), "red"))
    score, _ = done(server, {"verb": "score", "given": {"image": picture, "text": TEXT}, "draws": 2})
    for name in (without, score):
        assert "no film" in refused(server.get(f"{JOBS}/{name}/film"), 409)["message"]
    name = server.submit({"names": ["image"], "steps": 1000, "n": 8})
    assert "no film" in refused(server.get(f"{JOBS}/{name}/film"), 409)["message"]
    server.http.delete(f"{JOBS}/{name}")
    server.over(name)


def test_the_history_holds_no_given_files_and_a_job_all_of_them(server: Server) -> None:
    picture = data_url(Image.effect_noise((64, 64), 80).convert("RGB"))
    job = {"names": ["text"], "given": {"image": picture}, "seed": 1}
    name, _ = done(server, job)
    [listed] = server.get(JOBS, params={"limit": 1}).json()["jobs"]
    assert listed["id"] == name and listed["job"]["given"] == {"image": {"type": "image/png"}}
    whole = server.get(f"{JOBS}/{name}").json()["job"]["given"]["image"]
    assert len(whole["data"]) > 1000
    assert server.http.post(f"{JOBS}/{name}/retry").status_code == 202
