"""What a preparation did to its inputs, step by step: a JSON document, and a page to look at."""

import html

from pydantic import BaseModel, ConfigDict

from skywork_trainer.config import Preparation
from skywork_trainer.data.shards import SourceIndex
from skywork_trainer.prepare.work import Counts, Removed

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
_WHAT = {
    "BadLine": "not JSON, or without text in the named field",
    "Empty": "nothing left after normalisation",
    "Duplicate": "the same text occurred before",
    "NearDuplicate": "nearly the same text occurred before",
    "RepeatedBlocks": "mostly lines and paragraphs that repeat",
    "TooShort": "fewer characters than filters.minCharacters",
    "TooLong": "more characters than filters.maxCharacters",
    "Symbols": "more symbols than filters.maxSymbolShare",
    "Language": "fewer letters of a script than filters.minScriptShare",
    "Contaminated": "shares a run of words with an evaluation set",
}


class Report(BaseModel):
    """Everything the page shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: Preparation
    lines: int
    documents: int
    characters: int
    repeated_characters: int
    removed: dict[str, Removed]
    lengths: tuple[int, ...]
    """Documents that stayed, by the binary logarithm of their characters."""
    tokens: int
    text_bytes: int
    shards: int
    fingerprint: str


def report(options: Preparation, index: SourceIndex, counts: Counts) -> Report:
    """Return the report of a finished source; the same preparation gives the same report."""
    return Report(
        options=options,
        lines=counts.lines,
        documents=counts.documents,
        characters=counts.characters,
        repeated_characters=counts.repeated_characters,
        removed={reason: counts.removed[reason] for reason in _WHAT if reason in counts.removed},
        lengths=counts.lengths,
        tokens=index.tokens,
        text_bytes=sum(shard.text_bytes for shard in index.shards),
        shards=len(index.shards),
        fingerprint=index.fingerprint,
    )


def page(told: Report) -> str:
    """Return the report as one HTML page that needs nothing else."""
    kept = told.documents / max(told.lines, 1)
    figures = {
        "lines read": f"{told.lines:,}",
        "documents kept": f"{told.documents:,} ({kept:.1%})",
        "tokens": f"{told.tokens:,}",
        "text": f"{told.text_bytes / 1e6:,.1f} MB, {told.text_bytes / max(told.tokens, 1):.2f} bytes per token",
        "shards": f"{told.shards:,}",
    }
    if told.repeated_characters:
        figures["repeated blocks taken out"] = f"{told.repeated_characters:,} characters"
    cards = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in figures.items())
    return _PAGE.format(
        output=html.escape(told.options.output),
        cards=cards,
        steps=_steps(told),
        lengths=_lengths(told.lengths),
        samples=_samples(told),
        inputs="<br>".join(html.escape(uri) for uri in told.options.inputs),
        fingerprint=told.fingerprint,
    )


def _steps(told: Report) -> str:
    rows = [("kept", "trained on", told.documents, told.characters, "kept")]
    rows += [
        (reason, _WHAT.get(reason, ""), removed.documents, removed.characters, "removed")
        for reason, removed in told.removed.items()
    ]
    most = max(max(row[2] for row in rows), 1)
    return "".join(
        f"<tr><td>{name}<small>{what}</small></td><td>{documents:,}</td><td>{documents / max(told.lines, 1):.2%}</td>"
        f'<td>{characters:,}</td><td><svg width="240" height="14" role="img" aria-label="{documents:,} documents">'
        f'<rect class="{kind}" width="{max(240 * documents / most, 1 if documents else 0):.1f}" height="14" rx="2"/>'
        "</svg></td></tr>"
        for name, what, documents, characters, kind in rows
    )


def _lengths(lengths: tuple[int, ...]) -> str:
    filled = [n for n, count in enumerate(lengths) if count]
    if not filled:
        return ""
    shown = range(filled[0], filled[-1] + 1)
    most = max(lengths)
    bars = []
    for place, n in enumerate(shown):
        height = 120 * lengths[n] / most
        x = 20 + place * 68
        bars.append(
            f'<rect class="kept" x="{x}" y="{140 - height:.1f}" width="56" height="{height:.1f}" rx="2"/>'
            f'<text x="{x + 28}" y="{134 - height:.1f}">{lengths[n]:,}</text>'
            f'<text x="{x + 28}" y="158">{_thousands(1 << max(n - 1, 0))}–{_thousands(1 << n)}</text>'
        )
    return f'<svg width="{40 + 68 * len(shown)}" height="170" role="img" aria-label="lengths">{"".join(bars)}</svg>'


def _thousands(number: int) -> str:
    return f"{number >> 20}M" if number >= 1 << 20 else f"{number >> 10}k" if number >= 1 << 10 else str(number)


def _samples(told: Report) -> str:
    return "".join(
        f"<h3>{reason}</h3>"
        + "".join(
            f"<p><code>{html.escape(sample.where)}</code><q>{html.escape(sample.text)}</q></p>"
            for sample in removed.samples
        )
        for reason, removed in told.removed.items()
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{output}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 980px; margin: 32px auto; padding: 0 16px }}
h1 {{ font-size: 22px; overflow-wrap: anywhere }} h2 {{ font-size: 17px; margin: 32px 0 8px }}
h3 {{ font-size: 15px; margin: 16px 0 4px }}
.cards {{ display: flex; flex-wrap: wrap; gap: 12px }}
.cards div {{ background: #f2f5f8; border-radius: 6px; padding: 10px 16px }}
.cards b {{ display: block; font-size: 17px }} .cards span, small {{ color: #5b6b7b; font-size: 12px }}
table {{ border-collapse: collapse; width: 100% }} td, th {{ padding: 6px 10px; text-align: right }}
td {{ border-top: 1px solid #e3e8ed; font-variant-numeric: tabular-nums }}
td:first-child, th:first-child, td:last-child, th:last-child {{ text-align: left }}
small {{ display: block }} .kept {{ fill: #2f7d5b }} .removed {{ fill: #c25a3c }}
svg text {{ font-size: 11px; text-anchor: middle; fill: #5b6b7b }}
q {{ display: block; white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f3ef; padding: 6px 10px;
  border-radius: 4px; max-height: 90px; overflow: hidden }} code {{ font-size: 12px; color: #5b6b7b }}
</style></head><body>
<h1>{output}</h1><div class="cards">{cards}</div>
<h2>What became of every line</h2>
<table><tr><th>step</th><th>documents</th><th>of all lines</th><th>characters</th><th></th></tr>{steps}</table>
<h2>Characters of the documents that stayed</h2>{lengths}
<h2>Samples of what was left out</h2>{samples}
<h2>Inputs</h2><p>{inputs}</p><p><small>fingerprint {fingerprint}</small></p>
</body></html>
"""
