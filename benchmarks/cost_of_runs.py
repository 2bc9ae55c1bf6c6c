"""What a run costs in a stack of R: XOR descents from 1 to 1000 runs, MNIST descents from 1 to 16, on a GPU to 64.

The cost of XOR is that of an accepted step of one run, that of MNIST of one attempt of one run, a pass and an
evaluation of 2,000 examples. The last line is the cost of an XOR run alone beside that in the largest stack. With
--figure nothing is timed: the saved tables of all machines become figures/cost_of_runs. MNIST is needed.
Run: python benchmarks/cost_of_runs.py [rounds], or python benchmarks/cost_of_runs.py --figure
"""

import json
import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import mnist_epoch  # noqa: E402
import toy_stack  # noqa: E402
from measure import DEVICE, Report, seconds, sized  # noqa: E402

from lib import descend, drawing  # noqa: E402
from lib import sets as data  # noqa: E402

XOR = sized((1, 3, 10, 30, 100, 300, 1000), (1, 3))
MNIST = sized((1, 2, 4, 8, 16) + ((32, 64) if DEVICE == "cuda" else ()), (1, 2))
EXAMPLES, KIND = sized(2000, 100), "EWN"


def xor_cost(runs):
    """Return microseconds per accepted step of one run."""
    return toy_stack.cost([toy_stack.ours([KIND] * runs, list(range(runs)))])


def mnist_cost(sets, runs):
    """Return seconds of one attempt of one run."""
    states = mnist_epoch.our_stacks([KIND] * runs, sets)
    with descend.full_precision():
        mnist_epoch.our_attempt(states, sets)
        return seconds(mnist_epoch.our_attempt, states, sets) / runs


def add_sizes(report, name, sizes, cost, unit, rounds):
    """Add one line for every size of stack; return the ratio of the first, one run alone, to the last."""
    found = {runs: [] for runs in sizes}
    for _ in range(rounds):
        for runs, times in found.items():
            times.append(cost(runs))
    report.add(f"{name}: 1 run", found[1], unit=unit)
    ratios = [report.add(f"{name}: {runs} runs", found[runs], f"{name}: 1 run", unit) for runs in sizes[1:]]
    return ratios[-1]


def main(rounds):
    found = data.load("mnist", DEVICE, train_examples=EXAMPLES)
    sets = found.split("train"), tuple(part[:EXAMPLES] for part in found.split("test"))
    report = Report(
        "cost_of_runs", f"a step of an XOR run, an attempt of an MNIST run on {EXAMPLES} examples, by stack"
    )
    ratio = add_sizes(report, "XOR", XOR, xor_cost, "µs", rounds)
    add_sizes(report, "MNIST", MNIST, lambda runs: mnist_cost(sets, runs), "s", rounds)
    report.close(ratio, 0)


def curves(folder):
    """Return [(machine, name, sizes, costs)] of all saved tables, costs in units of one run alone."""
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        table = json.loads(path.read_text("utf-8")).get("cost_of_runs")
        for name in ("XOR", "MNIST") if table else ():
            rows = [(re.match(rf"{name}: (\d+) run", row["what"]), row["median"]) for row in table["rows"]]
            points = [(int(match[1]), median) for match, median in rows if match]
            sizes, costs = zip(*points, strict=True)
            found.append((table["machine"]["device"], name, sizes, [cost / costs[0] for cost in costs]))
    return found


def figure(folder=Path(__file__).parent / "results"):
    """Return the path of the figure: the cost of a run against the runs in its stack, on every machine measured."""
    import matplotlib.pyplot as plt

    lines = curves(folder)
    if not lines:
        sys.exit(f"no table of cost_of_runs in {folder}; first: python benchmarks/all.py cost_of_runs")
    drawing.style()
    drawn, axes = plt.subplots(figsize=(drawing.NARROW, 2.4))
    machines = list(dict.fromkeys(machine for machine, *_ in lines))
    for machine, name, sizes, costs in lines:
        marker = "os^vDPX"[machines.index(machine) % 7]
        dashes, colour = {"XOR": ("-", drawing.BLUE), "MNIST": ("--", drawing.RED)}[name]
        axes.loglog(sizes, costs, dashes, color=colour, marker=marker, label=f"{name}, {machine}")
    axes.axhline(1, color=drawing.GREY, linewidth=0.6)
    axes.set(xlabel="runs in a stack", ylabel="time of a run in a stack / alone", title="What a run costs in a stack")
    axes.legend()
    return drawing.save(drawn, "cost_of_runs")


if __name__ == "__main__":
    if sys.argv[1:] == ["--figure"]:
        print(figure())
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 3)
