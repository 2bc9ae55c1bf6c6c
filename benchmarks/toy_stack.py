"""A thousand XOR networks of each type in one stack, beside one network at a time.

Two baselines, measured in turn with the stack in one process: a lean eager PyTorch loop over one network (plain
tensors and autograd, no modules, no DataLoader, the same loss, line search and precision), and our own stack of
one run. The cost of all three is seconds per accepted step of one run, over the first steps of the descent and
the three types alike. Run: python benchmarks/toy_stack.py [rounds]
"""

import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import line_search, nets, toys  # noqa: E402

RULES = {"EWN": (5, 0.1), "SWN": (15, 1.0), "no-WN": (15, 0.1)}  # type -> exponent, cap
SEEDS, STEPS = 1000, 300
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


def spread(values):
    return f"{statistics.median(values):9.2f}  ({min(values):.2f} to {max(values):.2f})"


def main(rounds):
    kinds = list(RULES)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"XOR, 20 units, float32, {STEPS} steps; µs per step of one run, median (range) of {rounds} alternating rounds"
    )
    names = ("eager loop, one network", "our stack of one run", f"our stack of {len(kinds) * SEEDS} runs")
    rows = []
    for k in range(rounds):
        one = [eager(kind, k) for kind in kinds], [ours([kind], [k]) for kind in kinds]
        many = [ours([kind for kind in kinds for _ in range(SEEDS)], list(range(SEEDS)) * len(kinds))]
        rows.append([cost(results) for results in (*one, many)])
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        print(f"{name:24} {spread(column)}")
    print(f"stack of one over stack of {len(kinds) * SEEDS}, by run: {spread([b / c for _, b, c in rows]).strip()}x")
    print(f"toy_stack: {statistics.median(a / c for a, _, c in rows):.0f}x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
