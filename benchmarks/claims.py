"""What the page on speed claims of a CPU, each beside its peer, in minutes: all by one thread, all by two.

Peers and ours are timed in turn, round by round, by the clock on the wall. SynFlow prunes ResNet20 in 100 rounds and,
since plain PyTorch takes a minute, VGG19 in 10; a sweep is of four densities. A step is one of ResNet20 as the PHEW
study trains it, batch 128; the careful peer lays images channels last, and has bfloat16 where ours has. An attempt of
the MNIST descent is of 10,000 images. Four descents go one by one or together, the other way is the peer. A further
DPP draw is of 387 of 784 edges, ours by how much four more of 48 units lengthen the first. `start`: what a start takes.
MNIST and CIFAR-10 are needed. Run: python benchmarks/claims.py one_thread|two_threads|start [rounds]
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import cpu_choices  # noqa: E402
import dpp as draws_of_dpp  # noqa: E402
import masks as mask_times  # noqa: E402
import mnist_epoch  # noqa: E402
import workloads  # noqa: E402
from measure import Report, seconds  # noqa: E402

from lib import anneal, convnets, dpp, likelihood, nets, sets, stacking, synflow  # noqa: E402

PIECES = ("one_thread", "two_threads", "start")
THREADS = {"one_thread": 1, "two_threads": 2}
SYNFLOW = {"ResNet20": 100, "VGG19": 10}  # rounds
SWEEP = (0.1, 0.05, 0.02, 0.01)
STEPS, BATCH = 4, 128
IMAGES = 10_000  # of MNIST
WIDTHS = (130, 256, 512)  # 103,480 to 407,552 weights
RUNS = 4
DRAWN, FURTHER = 48, 4  # units, draws of each
ROOT = Path(__file__).resolve().parents[1]


def in_turn(report, rounds, ways, peers, warm=True, flops=0):
    """Add a line for each of `ways {what: call}`; peers: `{what: (what, ...)}` beside which a line has a ratio.

    warm: each is called once before, untimed; flops: operations of the products of one call, see `Report.add`.
    """
    times = {what: [] for what in ways}
    for work in ways.values() if warm else ():
        work()
    for _ in range(rounds):
        for what, work in ways.items():
            times[what].append(seconds(work))
    for what, taken in times.items():
        for k, peer in enumerate(peers.get(what, ("",))):
            report.add(what + f", beside {peer}" * bool(k), taken, peer, flops=flops)


# ---- masks


def masks(report, rounds):
    """Masks at initialisation: SynFlow, SNIP and GraSP; the last two of VGG19 take half a minute a round."""
    for name, build in mask_times.NETWORKS.items():
        net, module = convnets.build(mask_times.STACKS[name], (3, 32, 32), 10, 1), build(0)
        nets.init_(net, [0], "phew")
        mask_times.ROUNDS = SYNFLOW[name]
        plain = {"SynFlow": mask_times.plain_synflow}
        plain |= {kind: partial(mask_times.plain_from_data, second=kind == "GraSP") for kind in ("SNIP", "GraSP")}
        passes = {"SynFlow": mask_times.ROUNDS, "SNIP": mask_times.IMAGES, "GraSP": 3 * mask_times.IMAGES}
        for kind, peer in plain.items():
            ways = {f"{name}, {kind}, plain PyTorch": partial(peer, module)}
            ways[f"{name}, {kind}"] = partial(mask_times.by_lib, kind, net)
            large = name == "VGG19"
            flops = 6 * nets.macs_per_run(net) * passes[kind]  # a gradient takes three products
            in_turn(report, max(1, rounds - large), ways, {f"{name}, {kind}": tuple(ways)[:1]}, not large, flops)
        if name == "ResNet20":
            sweep(report, rounds, net, module)


def sweep(report, rounds, net, module):
    def one_after_the_other():
        for _ in SWEEP:
            mask_times.plain_synflow(module)

    ours = partial(anneal.anneal, synflow.synflow, net, SWEEP, mask_times.ROUNDS)
    peer, what = "ResNet20, SynFlow of four densities, plain PyTorch", "ResNet20, SynFlow of four densities"
    in_turn(report, rounds, {peer: one_after_the_other, what: ours}, {what: (peer,)}, warm=False)


# ---- steps


def plain_steps(x, y, layout=torch.contiguous_format, bf16=False):
    """Return a call that takes `STEPS` steps of ResNet20, as one writes them with care."""
    network = mask_times.resnet20(0).train().to(memory_format=layout)
    rule = {key: workloads.SCHEDULE[key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    optimizer, x = torch.optim.SGD(network.parameters(), **rule), x.unflatten(1, (3, 32, 32))

    def work():
        for at in torch.randperm(len(y)).split(BATCH):
            images = x[at].contiguous(memory_format=layout)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = network(images)
            torch.nn.functional.cross_entropy(logits.float(), y[at]).backward()
            optimizer.step()

    return work


def steps(report, rounds):
    x, y = sets.load(workloads.CIFAR, train_examples=STEPS * BATCH, statistics="phew").split("train")
    ours = [workloads.cifar_trainer("resnet20", [0], STEPS * BATCH, batch=BATCH, bf16=bf16) for bf16 in (False, True)]
    peers = [f"ResNet20, {STEPS} steps, plain PyTorch{how}" for how in ("", ", channels last", ", channels last, bf16")]
    calls = plain_steps(x, y), plain_steps(x, y, torch.channels_last), plain_steps(x, y, torch.channels_last, True)
    what, half = f"ResNet20, {STEPS} steps", f"ResNet20, {STEPS} steps, bf16"
    passes = [lambda of=of: of._pass(of._orders(), of.lr) for of in ours]  # a peer looks at no test image either
    ways = dict(zip((*peers, what, half), (*calls, *passes), strict=True))
    flops = 6 * nets.macs_per_run(convnets.build("resnet20", (3, 32, 32), 10, 1)) * STEPS * BATCH
    in_turn(report, rounds, ways, {what: tuple(peers[:2]), half: (peers[0], peers[2])}, flops=flops)


def attempts(report, rounds):
    real = sets.load(workloads.MNIST, train_examples=IMAGES)
    both = real.split("train"), tuple(part[:1] for part in real.split("test"))
    with tempfile.TemporaryDirectory() as folder:
        loader = mnist_epoch.plain_loader(real, folder)
        for kind in mnist_epoch.TYPES:
            mnist_epoch.compare(report, kind, loader, both, rounds)


def stacks(report, rounds):
    for width in WIDTHS:
        size = nets.parameters_per_run(nets.MLP([784, width, 10], ["EWN"]))
        works = {
            "one by one": cpu_choices.descents(width, RUNS, 1),
            "together": cpu_choices.descents(width, RUNS, RUNS),
        }
        ours = "one by one" if size > stacking.TOO_LARGE_TO_STACK["descent"] else "together"
        (other,) = set(works) - {ours}
        ways = {f"four descents of {size:,} weights, {way}": works[way] for way in (other, ours)}
        peer, what = ways
        in_turn(report, rounds, ways, {what: (peer,)})


def further_draws(report, rounds):
    x, _ = sets.load(workloads.MNIST).split("train")
    weight = 0.07 * torch.randn(DRAWN, draws_of_dpp.INPUTS, generator=torch.Generator().manual_seed(0))
    edges = likelihood.Edges(likelihood.moments(x), weight, draws_of_dpp.BETA)
    process, why = draws_of_dpp.by_dppy(edges[:1][0].numpy())
    if why:
        sys.exit(f"DPPy made no first draw: {why}")
    keep, theirs, ours = draws_of_dpp.KEEP, [], []
    for seed in range(rounds):
        theirs.append(seconds(partial(process.sample_exact_k_dpp, keep, random_state=seed + 1)))
        first = seconds(dpp.sample, edges, keep, [seed])
        more = seconds(dpp.sample, edges, keep, range(seed, seed + 1 + FURTHER))
        ours.append((more - first) / FURTHER / DRAWN)
    report.add("a further DPP draw of a unit, DPPy", theirs)
    report.add("a further DPP draw of a unit", ours, "a further DPP draw of a unit, DPPy")


# ---- beginning


def start(report, rounds):
    """Report what a user waits for: imports, a plan, the quick profile, and the same again, in folders of their own."""
    files = [path for path in sorted((ROOT / "lib").glob("*/*.py")) if "triton" not in path.stem]  # which not all have
    rooms = " ".join(f"import lib.{path.parent.name}.{path.stem};" for path in files)
    with tempfile.TemporaryDirectory() as folder:
        places = {"PRUNING_RUNS": f"{folder}/runs", "PRUNING_FIGURES": f"{folder}/figures"}
        call = partial(subprocess.run, cwd=ROOT, env=os.environ | places, check=True, capture_output=True)
        ways = {"import torch": partial(call, [sys.executable, "-c", "import torch"])}
        ways["import every room of lib"] = partial(call, [sys.executable, "-c", rooms])
        ways["./run_all.sh --quick -n"] = partial(call, ["./run_all.sh", "--quick", "-n"])
        in_turn(report, rounds, ways, {"import every room of lib": ("import torch",)})
        report.add("./run_all.sh --quick", [seconds(call, ["./run_all.sh", "--quick"])])
        again = [seconds(call, ["./run_all.sh", "--quick"]) for _ in range(rounds)]
        return report.add("./run_all.sh --quick, again", again, "./run_all.sh --quick")


PARTS = (masks, steps, attempts, stacks, further_draws)


def main(piece, rounds=3):
    if piece == "start":
        report = Report("claims.start", "from a command to its end")
        report.close(start(report, rounds))
        return
    torch.set_num_threads(THREADS[piece])
    report = Report(f"claims.{piece}", "ours and its peers in turn, float32 where nothing else is said")
    with mock.patch.object(workloads, "DEVICE", "cpu"), mock.patch.object(mnist_epoch, "DEVICE", "cpu"):
        for part in PARTS:
            part(report, rounds)
    report.close(min(row["ratio"] for row in report.rows if row["baseline"]), 2)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
