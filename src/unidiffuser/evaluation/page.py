"""A report as one HTML page that needs nothing else: every row, and samples beside what they were made from."""

import base64
import html
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unidiffuser.evaluation.numbers import shown
from unidiffuser.evaluation.trial import Trial
from unidiffuser.modalities import Modality

SHOWN = 12
"""So many samples of each distribution."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .4rem .8rem .4rem 0 }
td, th { border-bottom: 1px solid #ddd; vertical-align: top } small { color: #666 }
.shown { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 8rem }
img { width: 8rem; image-rendering: pixelated; display: block } audio { width: 8rem } figcaption { font-size: 13px }
"""


def page(report: Mapping[str, Any], trial: Trial) -> str:
    """The page of a report and of the samples that its measures drew."""
    title = html.escape(f"{trial.model.name}: evaluation")
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{title}</h1><p>{html.escape(_about(report, trial))}</p>")
    parts.append("<table><tr><th>row<th>measured<th>features</tr>")
    parts += [_row(name, row) for name, row in report["rows"].items()]
    parts.append("</table>")
    if report["left_out"]:
        parts.append("<h2>Not measured</h2><ul>")
        parts += [f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in report["left_out"].items()]
        parts.append("</ul>")
    parts += _samples(trial)
    return "\n".join([*parts, "</html>\n"])


def _about(report: Mapping[str, Any], trial: Trial) -> str:
    pairs = report["pairs"]
    return (
        f"{report['samples']} samples of each distribution; {pairs['asked']} true pairs asked about and "
        f"{pairs['others']} others; seed {report['seed']}; features {report['features']}; "
        f"settings {json.dumps(report['settings'])}; model {trial.model.digest[:16]}. "
        "± is a standard error, brackets hold a 95 % interval, truth is what other true pairs get."
    )


def _row(name: str, row: Mapping[str, Any]) -> str:
    numbers = "<br>".join(html.escape(shown(title, number)) for title, number in row["numbers"].items())
    what = html.escape(row["what"])
    return (
        f"<tr><td>{html.escape(name)}<br><small>{what}</small><td>{numbers}<td>{html.escape(row.get('features', ''))}"
    )


def _samples(trial: Trial) -> Iterator[str]:
    codecs = trial.model.modalities
    for (of, given), values in trial.drawn.items():
        title = of + (f" given {' and '.join(given)}" if given else "")
        yield f"<h2>{html.escape(title)}</h2><div class=shown>"
        for k, value in enumerate(values[:SHOWN]):
            told = "".join(_value(codecs[name], trial.pair(k)[name]) for name in given)
            yield f"<figure>{_value(codecs[of], value)}<figcaption>{told}</figcaption></figure>"
        yield "</div>"


def _value(codec: Modality[Any], value: Any) -> str:
    """A raw value as HTML, by its media type."""
    if codec.media_type == "text":
        return f"<p>{html.escape(value)}</p>"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"value{codec.suffix}"
        codec.write(value, place)
        data = place.read_bytes()
    if codec.media_type == "image":
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    if codec.media_type == "sound":
        return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(data).decode()}"></audio>'
    return f"<p>{html.escape(data.decode('utf-8', 'replace')[:200])}</p>"
