"""A thousand XOR networks of each type in one stack, beside one network at a time.

Two baselines, measured in turn with the stack in one process: a lean eager PyTorch loop over one network (plain
tensors and autograd, no modules, no DataLoader, the same loss, line search and precision), and our own stack of
one run. The cost of all three is seconds per accepted step of one run, over the first steps of the descent and
the three types alike. Run: python benchmarks/toy_stack.py [rounds] [seeds of a type]
"""

import math
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from measure import Report, sized  # noqa: E402

from lib import line_search, nets  # noqa: E402
from lib.studies.ewn import toys  # noqa: E402

RULES = {"EWN": (5, 0.1), "SWN": (15, 1.0), "no-WN": (15, 0.1)}  # type -> exponent, cap
STEPS, SEEDS = sized((300, 1000), (5, 3))
OUTPUT = [1.0] * 10 + [-1.0] * 10


def start(kinds, seeds):
    net = nets.MLP([2, 20, 1], kinds, "relu", bias=False)
    return toys.fix_output_(nets.init_(net, seeds, "torch_default"), OUTPUT)


def ours(kinds, seeds):
    """Return (seconds, accepted steps) of one stack."""
    net, rules = start(kinds, seeds), list(zip(*(RULES[kind] for kind in kinds), strict=True))
    began = time.perf_counter()
    result = line_search.search(net, *toys.xor(), *rules, 50, budget=STEPS)
    return time.perf_counter() - began, int(result.steps.sum())


def weights(kind, v, s):
    if kind == "no-WN":
        return v
    return (s.exp() if kind == "EWN" else s)[:, None] * v / v.norm(dim=1, keepdim=True)


def rescaled(kind, v, s, x, y, output, level):
    margins = y * (torch.relu(x @ weights(kind, v, s).t()) @ output)
    if margins.min() > 30:
        return (-margins - level).exp().sum()
    return torch.log1p((-margins).exp()).sum() * math.exp(-level)


def eager(kind, seed):
    """Return (seconds, accepted steps) of one network, written the usual way."""
    layer = start([kind], [seed]).layers[0]
    v, s = (p[0].detach().clone().requires_grad_(kind != "no-WN" or p is layer.weight) for p in layer.parameters())
    trained = [p for p in (v, s) if p.requires_grad]
    exponent, cap = RULES[kind]
    problem = *(t.float() for t in toys.xor()), torch.tensor(OUTPUT)
    step, level, began = 0.01, 0.0, time.perf_counter()
    for _ in range(STEPS):
        loss = rescaled(kind, v, s, *problem, level)
        gradients = torch.autograd.grad(loss, trained)
        before = [p.detach().clone() for p in trained]
        with torch.no_grad():
            while True:
                rate = step * math.exp(level / exponent)
                for p, old, gradient in zip(trained, before, gradients, strict=True):
                    torch.sub(old, gradient, alpha=rate, out=p)
                if rescaled(kind, v, s, *problem, level) <= loss:
                    break
                step /= 1.1
        step = step * 1.1 if step < cap else step
        level += math.log(loss.item())
    return time.perf_counter() - began, STEPS


def cost(results):
    """Return microseconds per accepted step of one run."""
    return 1e6 * sum(seconds for seconds, _ in results) / sum(steps for _, steps in results)


def main(rounds, seeds):
    kinds = list(RULES)
    report = Report("toy_stack", f"XOR, 20 units, float32, {STEPS} steps: a step of one run")
    many = f"our stack of {len(kinds) * seeds} runs"
    rows = []
    for k in range(rounds):
        one = [eager(kind, k) for kind in kinds], [ours([kind], [k]) for kind in kinds]
        stack = [ours([kind for kind in kinds for _ in range(seeds)], list(range(seeds)) * len(kinds))]
        rows.append([cost(results) for results in (*one, stack)])
    eagerly, alone, together = (list(column) for column in zip(*rows, strict=True))
    report.add("eager loop, one network", eagerly, unit="µs")
    report.add("our stack of one run", alone, "eager loop, one network", "µs")
    ratio = report.add(many, together, "eager loop, one network", "µs")
    report.add("the same, beside a stack of one", together, "our stack of one run", "µs")
    report.close(ratio, 0)


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    main(given[0] if given else sized(5, 1), given[1] if given[1:] else SEEDS)
