"""The OpenAI-compatible API, driven by the official client."""

import base64
import io
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
openai = pytest.importorskip("openai", reason="the official client is not installed")

from PIL import Image  # noqa: E402
from running_server import Server, data_url  # noqa: E402
from tiny_model import tiny_model  # noqa: E402

from unidiffuser.marking import SOURCE_TYPE  # noqa: E402

TEXT = "a large red circle"


@pytest.fixture
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=90)


def opened(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_generations_are_the_librarys_own_samples(client: Any) -> None:
    answer = client.images.generate(
        prompt=TEXT, n=2, size="64x64", quality="high", extra_body={"unidiffuser": {"seed": 7}}
    )
    expected = tiny_model().sample("image", text=TEXT, n=2, seed=7)
    for entry, sample in zip(answer.data, expected, strict=True):
        assert opened(entry.b64_json).convert("RGB").tobytes() == sample["image"].tobytes()
    assert answer.model_extra["ignored"] == ["quality"]
    assert [entry.model_extra["seed"] for entry in answer.data] == [7, 8]


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_formats(client: Any, format_: str) -> None:
    answer = client.images.generate(prompt=TEXT, output_format=format_, extra_body={"unidiffuser": {"seed": 1}})
    picture = opened(answer.data[0].b64_json)
    picture.load()
    assert picture.format == format_.upper() and SOURCE_TYPE.encode() in picture.info["xmp"]


def test_an_address_leads_to_the_same_picture(client: Any, server: Server) -> None:
    answer = client.images.generate(prompt=TEXT, response_format="url", extra_body={"unidiffuser": {"seed": 7}})
    url = answer.data[0].url
    assert url.startswith(server.url)
    served = Image.open(io.BytesIO(server.http.get(url).content)).convert("RGB")
    assert served.tobytes() == tiny_model().sample("image", text=TEXT, seed=7)[0]["image"].tobytes()


def test_a_stream_brings_partial_pictures_and_then_the_finished_one(client: Any) -> None:
    extra = {"unidiffuser": {"seed": 7, "steps": 6}}
    events = list(client.images.generate(prompt=TEXT, stream=True, partial_images=2, extra_body=extra))
    assert [event.type for event in events][-1] == "image_generation.completed"
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert len({event.b64_json for event in events}) == 3
    plain = client.images.generate(prompt=TEXT, extra_body=extra)
    assert events[-1].b64_json == plain.data[0].b64_json


def test_an_edit_keeps_what_the_mask_keeps(client: Any) -> None:
    picture = Image.new("RGB", (64, 64), (10, 200, 30))
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))  # transparent: to be made
    answer = client.images.edit(image=("a.png", png(picture)), mask=("m.png", png(mask)), prompt=TEXT)
    made = opened(answer.data[0].b64_json).convert("RGB")
    assert made.crop((0, 0, 32, 64)).tobytes() == picture.crop((0, 0, 32, 64)).tobytes()
    assert made.crop((32, 0, 64, 64)).tobytes() != picture.crop((32, 0, 64, 64)).tobytes()


def test_variations_and_plain_edits_start_from_the_picture(client: Any) -> None:
    picture = png(Image.new("RGB", (64, 64), (10, 200, 30)))
    varied = client.images.create_variation(image=("a.png", picture), n=2)
    assert len({entry.b64_json for entry in varied.data}) == 2
    assert client.images.edit(image=("a.png", picture), prompt=TEXT).data[0].b64_json


def test_a_caption_through_chat(client: Any) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    parts = [{"type": "text", "text": "Describe."}, {"type": "image_url", "image_url": {"url": data_url(picture)}}]
    messages = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="tiny", messages=messages, seed=4, temperature=0.5)
    assert answer.choices[0].message.content == tiny_model().sample("text", image=picture, seed=4)[0]["text"]
    assert answer.model_extra["ignored"] == ["temperature", "messages.text"]
    chunks = client.chat.completions.create(model="tiny", messages=messages, seed=4, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == answer.choices[0].message.content


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "ftp://x/a.png",
        "//evil/a.png",
        "data:text/html;base64,PGI+",
    ],
)
def test_no_address_is_ever_opened(client: Any, url: str) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="tiny", messages=messages)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "unidiffuser"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_refusals_are_the_clients_own_errors(client: Any) -> None:
    for bad in ({"n": 11}, {"size": "512x512"}, {"prompt": "a zebra"}, {"extra_body": {"unidiffuser": {"seed": -1}}}):
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.images.generate(**({"prompt": TEXT} | bad))
        assert caught.value.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt=TEXT, model="dall-e-3")
