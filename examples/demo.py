"""Every distribution of the model in the box on one sheet: demo/sheet.png, and the same as a page: demo/index.html.

    python examples/demo.py --out demo

Each row asks the same network for another distribution, only by naming what to sample and giving what is known. A mark
says whether a sample is true, which this world allows to be measured: the sentence is read by its grammar, the picture
by an oracle that knows nothing of the model.
"""

import argparse
import base64
import html
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unidiffuser import ModelError, UniDiffuser
from unidiffuser.cli.outputs import heat
from unidiffuser.datasets.scenes import Scenes, facts, oracle

SEEN = "a large red circle above a small blue square"
UNSEEN = "a small purple star left of a large green heart"
STAR = "a small green star left of a large yellow square on a white background"


@dataclass(frozen=True)
class Cell:
    """A picture, a sentence, or both; and whether it is true, where that can be said."""

    picture: Image.Image | None = None
    text: str = ""
    true: bool | None = None
    given: bool = False


@dataclass(frozen=True)
class Row:
    """One distribution."""

    title: str
    law: str
    call: str
    cells: list[Cell]
    claims: bool = True
    """Whether all of it should be true; not so where the model is led astray on purpose."""


def agree(picture: Image.Image, sentence: str) -> bool:
    """Whether the picture shows all that the sentence says."""
    said, seen = oracle.read_caption(sentence), oracle.read_all([picture])[0]
    return said is not None and facts.agrees(said, seen)


def readable(picture: Image.Image) -> bool:
    """Whether the picture is a scene of this world at all."""
    return oracle.read_all([picture])[0] is not None


def pictures_alone(model: UniDiffuser) -> Row:
    """Pictures, the words ignored."""
    cells = [Cell(s["image"], true=readable(s["image"])) for s in model.sample("image", n=8, seed=100)]
    return Row("Pictures", "p(image)", 'model.sample("image", n=8)', cells)


def sentences_alone(model: UniDiffuser) -> Row:
    """Sentences, the picture ignored."""
    texts = [sample["text"] for sample in model.sample("text", n=8, seed=200)]
    cells = [Cell(text=text, true=oracle.read_caption(text) is not None) for text in texts]
    return Row("Sentences", "p(text)", 'model.sample("text", n=8)', cells)


def pairs(model: UniDiffuser) -> Row:
    """Picture and sentence at once."""
    samples = model.sample("image", "text", n=8, seed=300)
    cells = [Cell(s["image"], s["text"], agree(s["image"], s["text"])) for s in samples]
    return Row("Both together", "p(image, text)", 'model.sample("image", "text", n=8)', cells)


def pictures_of_a_sentence(model: UniDiffuser) -> Row:
    """Pictures given a sentence; one of the two was held out of training."""
    cells = [
        Cell(s["image"], text, agree(s["image"], text))
        for text in (SEEN, UNSEEN)
        for s in model.sample("image", n=4, seed=400, text=text)
    ]
    title = "Pictures of a sentence"
    return Row(title, "p(image | text)", f'model.sample("image", text="{SEEN}"); no purple star was ever shown', cells)


def sentences_of_a_picture(model: UniDiffuser) -> Row:
    """Sentences given a true picture."""
    truth = Scenes(seed=7, split="test")
    photos = [truth[k]["image"] for k in range(4)]
    cells = []
    for k, photo in enumerate(photos):
        first, second = model.sample("text", n=2, seed=500 + 2 * k, image=photo)
        cells += [Cell(photo, s["text"], agree(photo, s["text"])) for s in (first, second)]
    return Row("Sentences of a picture", "p(text | image)", 'model.sample("text", image=photo)', cells)


def variations(model: UniDiffuser) -> Row:
    """A true picture into words and back, seven times."""
    photo = Scenes(seed=7, split="test")[5]["image"]
    chains = model.chain("image", "text", "image", n=7, seed=600, image=photo)
    cells = [Cell(photo, "the picture", given=True)]
    for words, varied in chains:
        true = agree(photo, words["text"]) and agree(varied["image"], words["text"])
        cells.append(Cell(varied["image"], words["text"], true))
    return Row(
        "Variations of a picture",
        "image -> text -> image",
        'model.chain("image", "text", "image", n=7, image=photo)',
        cells,
    )


def gibbs(model: UniDiffuser) -> Row:
    """Words and pictures in turn, each from the last."""
    (chain,) = model.chain(*["text", "image"] * 4, seed=700, text=STAR)
    cells = [Cell(text=STAR, given=True)]
    for link in chain:
        new = "image" if len(cells) % 2 else "text"
        true = agree(link["image"], link["text"])
        cells.append(Cell(link["image"], true=true) if new == "image" else Cell(text=link["text"], true=true))
    return Row("A Gibbs chain", "text -> image -> text -> ...", 'model.chain("text", "image", ..., text=...)', cells)


def interpolation(model: UniDiffuser) -> Row:
    """From one true pair to another."""
    truth = Scenes(seed=7, split="test")
    first, second = truth[8], truth[9]
    frames = model.interpolate(first, second, frames=8, steps=20)
    cells = [Cell(frame["image"], frame["text"], agree(frame["image"], frame["text"])) for frame in frames]
    return Row(
        "Between two pairs",
        "along the sphere of noise",
        "model.interpolate(first, second, frames=8)",
        cells,
        claims=False,
    )


def infilling(model: UniDiffuser) -> Row:
    """Half a picture, and a sentence with blanks."""
    photo = Scenes(seed=7, split="test")[3]["image"]
    mask = Image.new("L", photo.size)
    mask.paste(255, (photo.width // 2, 0, photo.width, photo.height))
    shown = photo.copy()
    shown.paste("#c9c6bf", (photo.width // 2, 0), mask.crop((photo.width // 2, 0, *photo.size)))
    cells = [Cell(shown, "the left half is known", given=True)]
    cells += [
        Cell(s["image"], true=readable(s["image"]))
        for s in model.sample("image", n=3, seed=800, image=photo, masks={"image": mask})
    ]
    blanks = "a ___ red ___ above a ___ blue square"
    cells.append(Cell(text=blanks, given=True))
    sentences = [s["text"] for s in model.sample("text", n=3, seed=800, text=blanks)]
    cells += [Cell(text=text, true=oracle.read_caption(text) is not None) for text in sentences]
    return Row("Filling in", "p(rest | part)", 'model.sample("image", image=photo, masks={"image": mask})', cells)


def looseness(model: UniDiffuser) -> Row:
    """One seed, one sentence, held more and more loosely."""
    cells = []
    for k in range(8):
        loose = k / 7
        picture = model.sample("image", seed=900, text=SEEN, looseness={"text": loose})[0]["image"]
        cells.append(Cell(picture, f"held at t = {loose:.2f}", agree(picture, SEEN)))
    call = f'model.sample("image", text="{SEEN}", looseness={{"text": t}})'
    return Row("Listening less and less", "p(image | text at t)", call, cells, claims=False)


def score(model: UniDiffuser) -> Row:
    """One picture, a right sentence and three wrong ones, in bits a pixel."""
    picture = model.sample("image", seed=400, text=SEEN)[0]["image"]
    cells = [Cell(picture, "the picture", given=True)]
    wrong = [SEEN.replace("red", "green"), SEEN.replace("above", "below"), STAR]
    for text in (SEEN, *wrong):
        (found,) = model.score("image", "text", samples=64, image=picture, text=text)
        said = f"{text}: {found.bits:.0f} ± {found.error:.0f} bits"
        cells.append(Cell(heat(next(iter(found.maps.values())), 64), said, agree(picture, text)))
    call = 'model.score("image", "text", image=picture, text=...); orange: pixels that the sentence explains'
    return Row("Does it fit?", "log p(image | text) / p(image)", call, cells, claims=False)


ROWS: list[Callable[[UniDiffuser], Row]] = [
    pictures_of_a_sentence,
    sentences_of_a_picture,
    pairs,
    pictures_alone,
    sentences_alone,
    variations,
    gibbs,
    interpolation,
    infilling,
    looseness,
    score,
]

SIDE, GAP, LEFT, COLUMNS = 128, 14, 270, 8
PAPER, INK, FAINT, RULE = "#faf9f6", "#22242a", "#74777f", "#e3e1db"
TRUE, FALSE = "#2e8b57", "#c8452f"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The type that Pillow brings."""
    return ImageFont.load_default(size)


def wrapped(draw: ImageDraw.ImageDraw, text: str, size: int, width: int, lines: int) -> list[str]:
    """Text cut into at most so many lines of a width in pixels."""
    result = [""]
    for word in text.split():
        longer = f"{result[-1]} {word}".strip()
        if draw.textlength(longer, font(size)) <= width or not result[-1]:
            result[-1] = longer
        else:
            result.append(word)
    return result if len(result) <= lines else [*result[: lines - 1], result[lines - 1] + " ..."]


def draw_mark(draw: ImageDraw.ImageDraw, x: float, y: float, true: bool) -> None:
    """A tick or a cross on a small disc, centred."""
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), TRUE if true else FALSE)
    strokes = [[(-4, 0), (-1, 4), (5, -4)]] if true else [[(-4, -4), (4, 4)], [(-4, 4), (4, -4)]]
    for stroke in strokes:
        draw.line([(x + a, y + b) for a, b in stroke], "white", 2, joint="curve")


def draw_cell(sheet: Image.Image, cell: Cell, x: int, y: int) -> None:
    """Draw a cell with its corner at x, y."""
    draw, left = ImageDraw.Draw(sheet), x
    frame, width = (INK, 2) if cell.given else (RULE, 1)
    if cell.picture is not None:
        sheet.paste(cell.picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), None, frame, width)
        lines, top, size, colour = wrapped(draw, cell.text, 12, SIDE, 5), y + SIDE + 6, 12, FAINT
    else:
        draw.rounded_rectangle((x, y, x + SIDE - 1, y + SIDE - 1), 8, "white", frame, width)
        lines, size, colour = wrapped(draw, cell.text, 14, SIDE - 22, 6), 14, INK
        x, top = x + 11, y + (SIDE - 18 * len(lines)) // 2
    for k, line in enumerate(lines):
        draw.text((x, top + k * (size + (4 if size == 14 else 2))), line, colour, font(size))
    if cell.true is not None:
        draw_mark(draw, left + SIDE - 3, y + 3, cell.true)


def caption_lines(draw: ImageDraw.ImageDraw, cell: Cell) -> int:
    """How many lines stand under a picture."""
    return len(wrapped(draw, cell.text, 12, SIDE, 5)) if cell.picture is not None and cell.text else 0


def draw_sheet(rows: list[Row], subtitle: str) -> Image.Image:
    """All rows on one picture."""
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    heights = [SIDE + 36 + 14 * max(caption_lines(probe, cell) for cell in row.cells) for row in rows]
    width = LEFT + COLUMNS * (SIDE + GAP) + 30
    sheet = Image.new("RGB", (width, 130 + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((36, 30), "One network, every distribution", INK, font(34))
    draw.text((36, 78), subtitle, FAINT, font(16))
    y = 130
    for row, height in zip(rows, heights, strict=True):
        draw.line((36, y - 12, width - 36, y - 12), RULE)
        draw.text((36, y), row.title, INK, font(20))
        draw.text((36, y + 30), row.law, TRUE, font(16))
        for k, line in enumerate(wrapped(draw, row.call, 12, LEFT - 60, 6)):
            draw.text((36, y + 58 + 15 * k), line, FAINT, font(12))
        for k, cell in enumerate(row.cells):
            draw_cell(sheet, cell, LEFT + k * (SIDE + GAP), y)
        y += height
    return sheet


STYLE = """
:root { color-scheme: light dark; --paper: #faf9f6; --ink: #22242a; --faint: #74777f; --rule: #e3e1db; --card: #fff;
  --true: #2e8b57; --false: #c8452f }
@media (prefers-color-scheme: dark) { :root { --paper: #17181b; --ink: #e8e6e1; --faint: #9a9ca3; --rule: #2e3035;
  --card: #1f2125; --true: #5fbf8a; --false: #e5715d } }
* { box-sizing: border-box } body { margin: 0 auto; padding: 3rem 1.5rem; max-width: 78rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-weight: 600; letter-spacing: -.02em; margin: 0 } h2 { font-size: 1.15rem; margin: 0 }
header p { color: var(--faint); max-width: 46rem } section { border-top: 1px solid var(--rule); padding: 1.5rem 0 }
.law { color: var(--true); margin: 0 } code { color: var(--faint); font-size: .8rem; overflow-wrap: anywhere }
.cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 14px; margin-top: 1rem }
figure { margin: 0; position: relative } img { width: 100%; display: block; border-radius: 6px }
figcaption { font-size: .8rem; line-height: 1.35; color: var(--faint); padding-top: .35rem }
.words { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 1rem .8rem; height: 100% }
.given { outline: 2px solid var(--ink); outline-offset: 2px; border-radius: 6px }
.mark { position: absolute; right: -6px; top: -6px; width: 20px; height: 20px; border-radius: 50%; color: #fff;
  font-size: 13px; line-height: 20px; text-align: center }
.yes { background: var(--true) } .no { background: var(--false) }
"""


def page(rows: list[Row], subtitle: str) -> str:
    """All rows as one page that needs nothing else."""
    sections = "\n".join(
        f'<section><h2>{html.escape(row.title)}</h2><p class="law">{html.escape(row.law)}</p>'
        f'<code>{html.escape(row.call)}</code><div class="cells">{"".join(map(figure, row.cells))}</div></section>'
        for row in rows
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>unidiffuser: one network, every distribution</title><style>{STYLE}</style>"
        f"<header><h1>One network, every distribution</h1><p>{html.escape(subtitle)}</p></header>{sections}</html>\n"
    )


def figure(cell: Cell) -> str:
    """One cell of the page."""
    mark = {
        None: "",
        True: '<span class="mark yes" title="true">✓</span>',
        False: '<span class="mark no" title="false">✗</span>',
    }
    given = " given" * cell.given
    text = html.escape(cell.text)
    if cell.picture is None:
        return f'<figure class="words{given}">{mark[cell.true]}{text}</figure>'
    buffer = io.BytesIO()
    cell.picture.convert("RGB").resize((256, 256), Image.Resampling.LANCZOS).save(buffer, "PNG")
    source = base64.b64encode(buffer.getvalue()).decode()
    picture = f'<img class="{given.strip()}" alt="{text or "a sampled picture"}" src="data:image/png;base64,{source}">'
    return f"<figure>{mark[cell.true]}{picture}<figcaption>{text}</figcaption></figure>"


def shares(rows: list[Row]) -> str:
    """How many of the samples that should be true are."""
    marks = [cell.true for row in rows if row.claims for cell in row.cells if cell.true is not None]
    return f"{sum(marks)} of {len(marks)} samples that claim something are true"


def main(argv: list[str]) -> int:
    """Make the sheet and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
    parser.add_argument("--model", default="scenes", help="a model in the box, or a folder")
    args = parser.parse_args(argv)
    started = time.monotonic()
    try:
        model = UniDiffuser.from_pretrained(args.model)
    except ModelError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    rows = list(progress(model))
    subtitle = (
        "What is sampled is named, what is given is passed, the rest is ignored. "
        f"Framed: given. {shares(rows)}, measured by a grammar and an oracle."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    draw_sheet(rows, subtitle).save(args.out / "sheet.png")
    (args.out / "index.html").write_text(page(rows, subtitle), encoding="utf-8")
    print(f"{args.out / 'sheet.png'}\n{args.out / 'index.html'}\n{time.monotonic() - started:.0f} seconds")
    print(f"Now by hand: {Path(sys.executable).with_name('unidiffuser')} serve, then open http://localhost:8000")
    return 0


def progress(model: UniDiffuser) -> Iterator[Row]:
    """The rows, saying on stderr which one is being made."""
    for k, make in enumerate(ROWS, 1):
        row = make(model)
        print(f"{k}/{len(ROWS)}  {row.title}", file=sys.stderr)
        yield row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
