"""Which values a notebook's parameters may take, as intervals: one table for all notebooks, and where one differs.

Checked by `open_run` before any data or training. What depends on several parameters at once, a study checks itself.
"""

from lib.errors import ParameterError, listed, within
from lib.records.parameters import counted_out, many, reject_repeated, said

# "[a, b)": a is allowed, b is not; of a list, every entry. Counts are bounded where nothing could be computed beyond,
# rates of toys where float64 or a record in float32 would overflow.
COUNT, SOME, SIZE, SHARE, SEED = "[1, 2^31)", "[0, 2^31)", "[1, 65536]", "[0, 1)", "[0, 2^64)"
RANGES = {
    "seed": SEED, "published_seed": "[0, 2^32)", "stack": SOME,
    "width": SIZE, "hidden": SIZE, "latent": SIZE, "inputs": SIZE, "students": "[1, 1000]", "teachers": "[1, 1000]",
    "depths": "[1, 100]", "dropconnect": SHARE, "dropout": SHARE,
    "train_examples": SOME, "batch_size": COUNT, "watch": SOME, "examples_per_class": COUNT, "tests": "[500, 2^31)",
    "samples": "[500, 2^31)", "examples": "[500, 2^31)", "batches": COUNT, "noise": "[0, 1000]",
    "epochs": "[1, 1000000]", "retrain_epochs": "[0, 1000000]", "prune_epochs": "[0, 1000000]", "drops": SOME,
    "steps": "[1, 1000000000]", "repeats": "[1, 1000000]", "threads": "[1, 1024]",
    "lr": "(0, 1000]", "rate": "(0, 1000]", "momentum": SHARE, "weight_decay": "[0, 1000]",
    "limit": "(0, 700]", "exponent": "[0, 1000]", "exponents": "[0, 1000]", "cap": "(0, 1000]", "caps": "(0, 1000]",
    "point": "(0, 1000]", "farthest": "[1, 1000]", "v_star": "(0, 1000]", "active": "[0, 1]", "fit_from": SHARE,
    "sparsities": SHARE, "densities": "(0, 1]", "density": "(0, 1]", "shares": "[0, 1]", "levels": "[-100000, 0)",
    "keep": SOME, "sets": "[1, 1000]", "beta": "[0, inf)", "rounds": "[1, 10000]",
    "initial": "[0, 1000000]", "increment": "[1, 1000000]", "fraction": SHARE, "minimum": SIZE,
    "average": "[-1000, 1000]", "maximum": "[-1000, 1000]",
    "shuffle_at": SHARE, "recovery": "[1, 1000000]", "score_examples": COUNT, "holdout": COUNT, "level": "[-100000, 0]",
    "at": "(0, 1)", "near": "(0, 1000]", "sizes": SIZE, "sparsity": SHARE, "batch": SIZE, "seconds": "(0, 3600]",
}  # fmt: skip
# Where 0 stands for something else: the published number, all, nothing trained; and where less is possible.
_AT_INITIALISATION = {"width": "[0, 65536]", "epochs": "[0, 1000000]"}
OWN = {
    **dict.fromkeys(("lin_sep", "conv_rate"), {"seed": "[0, 2^32)"}),  # NumPy's older generator takes no more
    "phew_density": _AT_INITIALISATION, "phew_width": _AT_INITIALISATION,
    "arena": {"width": "[0, 65536]"},
    "dpp_teacher_student": {"seed": "[0, 2^54)"},  # each has a thousand of its own, for the sets that it draws
    "train_time_prune": {"hidden": "[0, 65536]", "batch_size": SOME},
    "vae_prune": {"score_examples": SOME},
    "explore": {"examples": SOME},
}  # fmt: skip
# Lists whose entries are the coordinates of an axis.
DIFFERENT = {"sparsities", "shuffle_at", "densities", "shares", "levels", "depths", "batches", "noise", "keep",
             "drops", "score_examples"}  # fmt: skip
DEVICES = ("auto", "cpu", "cuda", *(f"cuda:{number}" for number in range(16)))


def reject_outside(experiment: str, parameters: dict) -> None:
    """Return nothing; ParameterError for the first number of an experiment's parameters that is outside of its range.

    A notebook of one's own may have numbers that the table does not know: anything goes there.
    """
    ranges = RANGES | OWN.get(experiment, {})
    for name, value in parameters.items():
        values = many(counted_out(value) if name == "seed" else value)
        if odd := [v for v in values if name in ranges and not isinstance(v, str) and not within(v, ranges[name])]:
            raise ParameterError(f"{said(name, value)}: {odd[0]!r} is not in {ranges[name]}, which is allowed.")
        if name in DIFFERENT:
            reject_repeated(name, values)
    if parameters.get("device", "auto") not in DEVICES:
        raise ParameterError(f"device = {parameters['device']!r}; allowed are {listed(DEVICES[:4])} and so on.")
