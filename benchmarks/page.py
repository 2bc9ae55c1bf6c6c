"""The claims of benchmarks/README.md and their figure, from the tables of one machine: see `all.py`.

A claim is a row of a table that has a ratio. Those of `claims` are all told, by one thread and by two; of the other
tables a row or two.
"""

import os
import re
from pathlib import Path

import matplotlib.pyplot as plt

from lib import disk, drawing

PAGE = Path(__file__).with_name("README.md")
BETWEEN = re.compile(r"(?<=<!-- claims -->\n).*?(?=<!-- end -->)", re.DOTALL)
PIECES = {"claims.one_thread": "one thread", "claims.two_threads": "two threads"}
OTHERS = [  # (table, the row that is told of it, what it is called here)
    ("masks", "ResNet20 at 0.95, ours", "PHEW masks of ResNet20, sparsity 0.95"),
    ("dpp", "ours, cold", "500 DPP edge masks, from the data on"),
    ("importance", "ours", "contribution scores of an MLP"),
    ("toy_stack", "our stack of 3000 runs", "a step of one of 3,000 XOR networks"),
    ("cost_of_runs", "XOR: 1000 runs", "a step of one of 1,000 XOR networks"),
    ("challenge_stack", "ours, stack of 2", "a seed's grid of posthoc and finetune"),
    ("cifar_epoch", "EWN, ours", "EWN, an attempt of 13 convolutions"),
    ("deep_descent", "screened, at -100", "no-WN, an attempt at a log-loss of −100"),
    ("deep_descent", "screened, at -300", "no-WN, an attempt at a log-loss of −300"),
]


def claims(tables):
    """Return [(what, peer, {"one thread": row, ...}, machine)] of tables `{name: table}`, in their order."""
    found = {}
    for name, threads in PIECES.items():
        table = tables.get(name, {"rows": []})
        for row in (row for row in table["rows"] if row["baseline"]):
            what = row["what"].partition(", beside ")[0].replace(", ours", ", an attempt of the MNIST descent")
            entry = found.setdefault((what, row["baseline"]), ({}, table["machine"]))
            entry[0][threads] = row
    told = [(what, _peer(peer, what), rows, machine) for (what, peer), (rows, machine) in found.items()]
    for name, what, called in OTHERS:
        rows = [row for row in tables.get(name, {"rows": []})["rows"] if row["what"] == what and row["baseline"]]
        threads = rows and ("one thread" if tables[name]["machine"]["threads"] == 1 else "two threads")
        told += [(called, row["baseline"], {threads: row}, tables[name]["machine"]) for row in rows[:1]]
    return told


def _peer(peer, what):
    """Return the name of a peer without what it has in common with ours."""
    return peer.removeprefix(os.path.commonprefix([peer, what])).strip(", ")


def write(tables, folder):
    """Write the claims into the page between its markers, and the figure `claims.png` into a folder."""
    if not PIECES.keys() & tables.keys():  # of another machine, which the page is not about
        return
    told = claims(tables)
    _draw(told, folder / "claims.png")
    text = PAGE.read_text("utf-8")
    disk.put(PAGE, BETWEEN.sub(lambda _: _table(told), text).encode())


def _table(told):
    lines = ["| what | beside | one thread | two threads | ours | n | on |", "|---|---|---|---|---|---|---|"]
    for what, peer, rows, machine in told:
        last = list(rows.values())[-1]
        ratios = " | ".join(_times(rows[k]["ratio"]) if k in rows else "" for k in PIECES.values())
        on = ", ".join(machine[key] for key in ("device", "isa", "date") if key in machine)
        ours = f"{last['median']:.3g} {last['unit']} ({last['least']:.3g} to {last['most']:.3g})"
        lines.append(f"| {what} | {peer} | {ratios} | {ours} | {last['n']} | {on} |")
    return "\n".join(lines) + "\n"


def _times(ratio):
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"


def _draw(told, path):
    """Draw how many times longer each peer takes, on a logarithmic axis, names and peers beside the points."""
    drawing.style()
    figure, axes = plt.subplots(figsize=(drawing.WIDE, 0.6 + 0.17 * len(told)))
    looks = {"one thread": ("o", drawing.BLUE, 0.12), "two threads": ("^", drawing.RED, -0.12)}
    for threads, (marker, colour, shift) in looks.items():
        points = [(rows[threads]["ratio"], k) for k, (_, _, rows, _) in enumerate(told) if threads in rows]
        if points:
            x, places = zip(*points, strict=True)
            axes.plot(x, [place - shift for place in places], marker, color=colour, label=threads)
    axes.axvline(1, color=drawing.BLACK, linewidth=0.6)
    axes.set_yticks(range(len(told)), [f"{what}\nbeside {peer}" for what, peer, _, _ in told], fontsize=4.5)
    axes.set(xscale="log", xlabel="times longer the peer takes", ylim=(len(told) - 0.4, -0.6))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right")
    figure.savefig(path)
    plt.close(figure)
