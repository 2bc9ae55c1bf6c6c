"""How much of a stack is trained together: all of it, or one run after the other where that is faster."""

from lib import nets

# Weights a run. A CPU streams larger stacks through memory and gains nothing. Convolutions keep to the same bound: of
# the VGG, forward and backward on one core, a run in a stack of three costs 0.7 of the time alone with 4 filters in the
# first block (58,000 weights), 1.0 with 8, 1.3 with 16; in a stack of nine 0.8, 1.6 and 1.6.
TOO_LARGE_TO_STACK = 50_000


def parts(net):
    """Return the slices of the stack that are trained together: all, or one by one where a CPU does better."""
    alone = next(net.parameters()).device.type == "cpu" and nets.parameters_per_run(net) > TOO_LARGE_TO_STACK
    return [slice(r, r + 1) for r in range(nets.runs(net))] if alone else [slice(0, nets.runs(net))]
