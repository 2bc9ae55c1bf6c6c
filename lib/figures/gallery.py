"""What came out, in words: every summary writes its part from records, the gallery and the README take it over.

A part is `figures/<study>.md`: a title, the question, the verdict with its first claim, a key figure, tables of claims
and of numbers, and the other figures folded. Between the markers `<!-- results of <study> … -->` and `<!-- end -->` the
gallery holds the parts, and the README a row for each. `python -m lib.figures.gallery` puts them there as they are.
"""

import os
import re
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import numpy as np

from lib.figures import drawing, evidence
from lib.records import disk

GALLERY, README = drawing.ROOT / "figures" / "README.md", drawing.ROOT / "README.md"
COUNTED = re.compile(r"Claims: (\d+)\. Confirmed: (\d+)\. Refuted: (\d+)\. Undecided: (\d+), of which (\d+)")
COLUMNS = 8  # methods that fit side by side into the width of a page
SENTENCE = re.compile(r"\*\*(?P<question>[^*]+\?)\*\* (?P<verdict>[\w ]+)\. (?P<number>[^\n]*)")


def claim(text, gains, than=0.0, unit=" points", main=False):
    """Return the row of a claim: that the mean of `gains (n,)`, paired by seed, is above `than`; see `evidence.judged`.

    main: whether the study's verdict stands on it. torn: mean, median and seeds in words, where a few decide the mean.
    """
    judged = evidence.judged(gains, than)
    mean, low, high = (number(judged[name]) for name in ("mean", "low", "high"))
    effect = f"{mean}{unit}" + (f" ({low} to {high})" if judged["n"] > 1 else "")
    median, true = np.median(gains) if judged["n"] else np.nan, np.sum(np.asarray(gains) > than)
    few = f"mean {mean}, median {number(median)}{unit}, true of {true} of {judged['n']} seeds"
    torn = few if (judged["mean"] > than) != (median > than) else ""
    return {"text": text, "effect": effect, "main": main, "torn": torn, **judged}


def ahead(rows, pairs, value, said, main=(), unit=" points"):
    """Return the claims that the first type of each of `pairs` has more of the column `value` than the second.

    rows: with type and seed; said: that claim in words, with a place for either type; main: pairs of the verdict.
    """
    return [claim(said.format(*(drawing.look(kind)[0] for kind in pair)), evidence.apart(rows, *pair, value), unit=unit,
                  main=pair in main) for pair in pairs]  # fmt: skip


def share(text, hits, main=False):
    """Return the row of a claim about most seeds, which `hits (n,)` are for or against; see `evidence.counted`."""
    counted = evidence.counted(hits)
    low, high = percent(counted["low"]), percent(counted["high"])
    effect = f"{np.sum(hits)} of {counted['n']} ({low} to {high})"
    return {"text": text, "effect": effect, "main": main, **counted}


def torn(claims):
    """Return the claims whose mean and median lie on two sides of what is claimed, as a list of one block, or none."""
    said = [f"- {one['text']}: {one['torn']}" for one in claims if one.get("torn")]
    return ["\n".join(["A few seeds decide these means, and the medians are on the other side:\n", *said])] * bool(said)


def number(value, digits=2):
    """Return a number as text, with a true minus, and without a sign where it is rounded to zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def percent(share, digits=0):
    """Return a share as text, in percent, whole ones unless told otherwise."""
    return f"{100 * share:.{digits}f} %"


def images(setting):
    """Return how many images networks were trained on, in words; setting: parameters of a record."""
    return f"{setting['train_examples']:,} images" if setting["train_examples"] else "all images"


def answer(claims):
    """Return Yes, No, Partly, Undecided or Not confirmed: what `claims` say together."""
    verdicts = {one["verdict"] for one in claims}
    if len(verdicts) > 1:
        return "Partly" if "confirmed" in verdicts else "Not confirmed"
    return {"confirmed": "Yes", "refuted": "No", "undecided": "Undecided"}[verdicts.pop()]


def chief(claims):
    """Return the claims that the answer stands on: the main ones, or the first."""
    return [one for one in claims if one["main"]] or claims[:1]


def headline(claims):
    """Return the claim that is told beside the answer: the first main one that is decided."""
    main = chief(claims)
    return next((one for one in main if one["verdict"] != "undecided"), main[0])


def against(claims):
    """Return what came out otherwise than the `headline`, in words, a refuted claim before an undecided one; or ""."""
    first = headline(claims)
    others = [one for one in chief(claims) if one["verdict"] != first["verdict"]]
    if not others:
        return ""
    one = min(others, key=lambda other: other["verdict"] == "undecided")
    both = os.path.commonprefix([first["text"], one["text"]])
    text = one["text"].removeprefix(re.match(".*: |.*, |", both)[0])  # what both say of the circumstances is said once
    return f". But {one['verdict']}: {text}: {one['effect'].partition(' (')[0]}"


def claims_table(claims):
    """Return the table of claims: effect with its 95 % interval, seeds, p, verdict, and how many seeds would decide."""
    columns = ["claim", "effect (95 %)", "n", "p", "verdict", "seeds that would decide"]
    lines = []
    for one in claims:
        p = "" if np.isnan(one["p"]) else "< 0.001" if one["p"] < 0.001 else number(one["p"], 3)
        enough = f"{one['enough']:.0f}" if np.isfinite(one["enough"]) else f"more than {evidence.MOST}"
        enough = enough if one["verdict"] == "undecided" else ""
        lines.append([one["text"], one["effect"], one["n"], p, one["verdict"], enough])
    return pipes(columns, lines)


def tally(claims):
    """Return how many claims there are and what became of them, as `COUNTED` reads it."""
    counts = Counter(one["verdict"] for one in claims)
    few = sum(one["verdict"] == "undecided" and one["n"] < evidence.NEEDED for one in claims)
    return (f"Claims: {len(claims)}. Confirmed: {counts['confirmed']}. Refuted: {counts['refuted']}. Undecided:"
            f" {counts['undecided']}, of which {few} have fewer than {evidence.NEEDED} seeds.")  # fmt: skip


def folded(title, *blocks):
    """Return blocks of Markdown behind a title to click on."""
    return "\n\n".join([f"<details><summary>{title}</summary>", *blocks, "</details>"])


def grid(table, row, digits=2):
    """Return a table of means ± sd, types as columns and `row` as rows, published means in italics.

    table: of `tables.beside`, index `row` and type. A mean of one has no spread. More types than `COLUMNS` have rows.
    """
    kinds, keys = drawing.ordered(table.index.unique("type")), list(table.index.unique(row))
    names = [f"{key:g}" if isinstance(key, float) else key for key in keys]
    cells = [
        [_cell(table.loc[key, kind], digits) if (key, kind) in table.index else "" for key in keys] for kind in kinds
    ]
    labels = [drawing.look(kind)[0] for kind in kinds]
    if len(kinds) > COLUMNS:
        rows = [[label, *own] for label, own in zip(labels, cells, strict=True)]
        return pipes(["", *(f"{row} {name}" for name in names)], rows)
    return pipes([row, *labels], [[name, *own] for name, own in zip(names, zip(*cells, strict=True), strict=True)])


def _cell(own, digits):
    text = number(own["ours"], digits) + (f" ± {number(own['ours sd'], digits)}" if own["ours n"] > 1 else "")
    return text + (f" *{number(own['published'], digits)}*" if np.isfinite(own["published"]) else "")


def pipes(columns, rows):
    """Return a Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(study, title, question, claims, figures, *blocks, missing=(), said=""):
    """Return the part of `study`, after writing it where figures are saved, and into the gallery and the README.

    Its figures lie beside what is written; what is returned, to be shown by a notebook, finds them from this folder.
    claims: rows of `claim` and `share`; the README tells the first decided main one, what is `said` after it, and the
    first that came out otherwise. figures: name -> what it shows; the first is the key figure, those that are not there
    are left out. blocks: tables and sentences from records. missing: what was not run. Without any claim None is
    returned; what is written says that nothing was run, or claimed if there are figures; a part that is there stays.
    """
    claims, path = [one for one in claims if one["n"]], drawing.folder() / f"{study}.md"
    there = [name for name in figures if (drawing.folder() / f"{name}.png").exists()]
    if not claims:
        print(f"{study}: nothing is claimed" + ("" if there else ", no run has a record yet"))
        shown = "Nothing is claimed. Its figures show runs of which none can be compared."
        told = shown if there else "Not run. `./run_all.sh` makes its records."
        if not path.exists():
            _put(path, f"## {title}\n\n**{question}** {told}\n")
        return None
    main = chief(claims)
    rest = [one for one in claims if one not in main]
    first, but = headline(claims), against(claims)
    told = f"{answer(main)}. {first['text']}: {first['effect']}, n = {first['n']}{said}{but}"
    lines = [f"## {title}", f"**{question}** {told}"]
    lines += [f"Not run: {', '.join(missing)}."] if missing else []
    shown = [f"![{name}]({name}.png)\n*{figures[name]}*" for name in there]
    more = [folded("The other claims", claims_table(rest))] if rest else []
    more += [folded("More figures", *shown[1:])] if shown[1:] else []
    text = "\n\n".join([*lines, *shown[:1], tally(claims), claims_table(main), *blocks, *more]) + "\n"
    _put(path, text)
    return re.sub(r"(?m)^(!\[\w+\]\()", rf"\1{quote(Path(os.path.relpath(path.parent)).as_posix())}/", text)


def _put(path, text):
    """Return nothing; `text` is now the part at `path`, and gallery and README hold it, if it is one of theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(path, text.encode())
    if path.parent == GALLERY.parent:
        include()


def include():
    """Return nothing; put the parts as they are now between the markers of the gallery and of the README."""
    with disk.lock(GALLERY):
        for path, told in ((GALLERY, section), (README, rows)):
            old = path.read_text("utf-8")
            new = included(old, told)
            if new != old:
                disk.replace(path, new.encode())


def included(text, told):
    """Return `text` with `told(parts)` between its markers; parts: study -> part, of those that a marker names."""

    def between(found):
        paths = {study: GALLERY.parent / f"{study}.md" for study in found[1].split()}
        parts = {study: path.read_text("utf-8") for study, path in paths.items() if path.exists()}
        return f"<!-- results of {found[1]} -->\n{told(parts)}\n<!-- end -->"

    return re.sub(r"<!-- results of ([\w ]+) -->\n.*?\n<!-- end -->", between, text, flags=re.DOTALL)


def section(parts):
    """Return how many claims became what, and the gallery's parts, with an anchor before each."""
    few = f"of these with fewer than {evidence.NEEDED} seeds"
    counted = [(f"[{part.split(chr(10), 1)[0].removeprefix('## ')}](#{study})", *found.groups())
               for study, part in parts.items() if (found := COUNTED.search(part))]  # fmt: skip
    table = pipes(["every claim", "in all", "confirmed", "refuted", "undecided", few], counted)
    return "\n".join([table + "\n", *(f'<a id="{study}"></a>\n\n{part}' for study, part in parts.items())])


def rows(parts):
    """Return the README's table, a row a study: question, verdict, one number with its n, links."""
    sentences = {study: SENTENCE.search(part) for study, part in parts.items()}
    links = "[figures](figures/README.md#{0}), [notebook](notebooks/summary_{0}.ipynb)"
    told = [(*one.group("question", "verdict", "number"), links.format(study)) for study, one in sentences.items()]
    return pipes(["question", "answer", "what says so", "more"], told)


if __name__ == "__main__":
    include()
