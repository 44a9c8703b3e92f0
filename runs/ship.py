"""Measure a trained model of the scenes, or a one-step student, write its card, and put it into the package.

    python runs/ship.py RUN/final src/unidiffuser/models/scenes [--samples 1000]

The weights are stored as float16 and it is those that are measured. The report lies beside this file as scenes.json,
or whatever the model's place is called. A student's card sets it beside the report of its teacher, if that lies there.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unidiffuser import UniDiffuser
from unidiffuser.evaluate import evaluate_scenes, markdown

Report = dict[str, Any]

CARD = """---
license: apache-2.0
library_name: unidiffuser
datasets: [scenes]
---

# {name}

One network for every distribution of 64 x 64 pictures of coloured shapes and the sentences that describe them: pictures
of sentences, sentences of pictures, both together, each alone. It comes with the library.

    unidiffuser sample image --text "a large red circle above a small blue square"
    unidiffuser sample text --image picture.png

**Data**: the `scenes` world, drawn on demand ([docs/scenes.md](../../../../docs/scenes.md)); {seen:,} pairs were
seen. Six pairs of colour and shape were kept out of training; "held-out" below is about them.

**Model**: a joint U-ViT, {parameters:.1f} million parameters
({network}),
on the latents of an autoencoder of {autoencoder:.1f} million parameters (8 x 8 x 4 numbers a picture) and {words} word
latents of {width} numbers; rectified flow, x0-prediction with the error measured in velocity, {ends:.0%} of the
timesteps at each exact end. Weights are stored in float16 and computed with in float32.

**Training**: `runs/scenes.sh`, {steps:,} steps of {batch} pairs after {ae_steps:,} steps of {ae_batch} pictures for the
autoencoder.

**Sampling** unless said otherwise: {solver}, {sampling_steps} steps, guidance {guidance}.

## Measured

`unidiffuser evaluate scenes --samples {samples}` on two CPU cores.

{table}
"""

STUDENT_CARD = """---
license: apache-2.0
library_name: unidiffuser
datasets: [scenes]
---

# {name}

The one-step student of {teacher} (sha256 {sha}): every distribution of pictures and sentences in one forward a sample.

    unidiffuser sample image --model {name} --text "a large red circle above a small blue square"

**Training**: `runs/{name}.sh`, {steps:,} steps of {batch} rows after {warmup:,} of the critic alone; divergence
{divergence}, {estimator} form, teacher's guidance {guidance} within
([how](../../../../docs/one-step.md)).

**Sampling** unless said otherwise: {sampling_steps} step from t = {begin}, no guidance.

## Measured

`unidiffuser evaluate {name} --samples {samples}` on two CPU cores.

{table}
{beside}
"""


def student_card(model: UniDiffuser, report: Report, samples: int) -> str:
    """The card of a one-step student."""
    about, training = dict(model.training), dict(model.training["training"])
    return STUDENT_CARD.format(
        name=model.name,
        teacher=about["teacher"]["name"],
        sha=about["teacher"]["sha256"][:12],
        steps=training["steps"],
        batch=training["batch"],
        warmup=about["warmup"],
        divergence=about["method"]["divergence"],
        estimator=about["method"]["estimator"],
        guidance=about["guidance"]["scale"],
        sampling_steps=model.settings.steps,
        begin=about["begin"],
        samples=samples,
        table=markdown(report).strip(),
        beside=beside_teacher(report, Path(__file__).with_name(f"{about['teacher']['name']}.json")),
    )


def beside_teacher(report: Report, file: Path) -> str:
    """What a student loses and gains, row by row; nothing if its teacher's report is not there."""
    if not file.exists():
        return ""
    teacher = json.loads(file.read_text(encoding="utf-8"))["rows"]
    lines = ["", "| beside its teacher | teacher | student |", "|---|---|---|"]
    for name, row in report["rows"].items():
        kind = next(kind for kind in ("rate", "distance", "seconds") if kind in row)
        if name in teacher:
            lines.append(f"| {row['what']} | {teacher[name][kind]:.3f} | {row[kind]:.3f} |")
    return "\n".join(lines)


def card(model: UniDiffuser, report: Report, samples: int) -> str:
    """The model card."""
    if model.critic is not None:
        return student_card(model, report, samples)
    training = dict(model.training)
    settings, network = training["training"], training["network"]
    image = model.modalities["image"].state()
    words, width = model.shapes["text"]
    return CARD.format(
        words=words,
        width=width,
        name=model.name,
        seen=settings["steps"] * settings["batch"],
        parameters=sum(p.numel() for p in model.network.parameters()) / 1e6,
        autoencoder=sum(x.numel() for x in image.values()) / 1e6,
        network=", ".join(f"{k} {v}" for k, v in network.items() if k != "kind"),
        ends=training["ends"],
        steps=settings["steps"],
        batch=settings["batch"],
        ae_steps=training["autoencoder_training"]["steps"],
        ae_batch=training["autoencoder_training"]["batch"],
        solver=model.settings.solver,
        sampling_steps=model.settings.steps,
        guidance=model.settings.guidance.scale,
        samples=samples,
        table=markdown(report).strip(),
    )


def main() -> int:
    """Evaluate, write, replace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trained", type=Path)
    parser.add_argument("place", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        small = Path(aside) / "model"
        UniDiffuser.from_pretrained(args.trained).save(small, stored="float16")
        model = UniDiffuser.from_pretrained(small)
    with tqdm(desc="evaluating", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def follow(row: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{row} {done}/{total}")
            bar.update()

        report = evaluate_scenes(model, args.samples, progress=follow)
    model.card = card(model, report, args.samples)
    model.save(args.place, stored="float16", force=True)
    result = Path(__file__).with_name(f"{args.place.name}.json")
    fresh = result.with_suffix(f".tmp-{os.getpid()}")
    fresh.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    shutil.move(fresh, result)
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
