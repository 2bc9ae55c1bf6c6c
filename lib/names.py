"""Names: what the published code of the PHEW study (arXiv 2010.11354) calls its experiments, and what we call them."""

from lib.errors import ParameterError, hint, listed

# Published name: (type, its keywords). nested: the masks of all densities come from one series of walks; init, reinit:
# schemes of `nets.init_`, before the masks are made, and of `nets.reinit_`, or again of `nets.init_`, after;
# shuffle: the width of `shuffle.shuffled`; the other keywords are those of `phew.Walks`.
ALIASES = {
    "Baseline_FC": ("dense", {}),
    "PHEW": ("phew", {}),
    "PHEW_Res": ("phew", {"nested": True}),
    "SNIP": ("snip", {}),
    "GRASP": ("grasp", {"over": "all"}),
    "Random": ("random", {}),
    "SynFlow": ("synflow", {}),
    "SynFlowL2": ("synflow_l2", {"power": 1}),
    "MAG": ("magnitude_trained", {}),
    "Inverse_PHEW": ("phew", {"nested": True, "invert": True}),
    "Uniform_PHEW": ("phew", {"nested": True, "power": 0}),
    "Kernel_PHEW": ("phew", {"nested": True, "kernel_walk": True}),
    "PHEW2": ("phew", {"nested": True, "power": 2}),
    "Normal_Init_PHEW": ("phew", {"nested": True, "init": "phew_normal"}),
    "Xavier_Init_PHEW": ("phew", {"nested": True, "init": "phew_xavier"}),
    "ReInit_PHEW": ("phew", {"nested": True, "reinit": "phew"}),
    "ReInit_Evci_PHEW": ("phew", {"nested": True, "reinit": "evci"}),
    "ReInit_Liu_PHEW": ("phew", {"nested": True, "reinit": "liu"}),
    "ReInit_Evci_Random": ("random", {"reinit": "evci"}),
    "ReInit_Liu_Random": ("random", {"reinit": "liu"}),
    "SynFlow_LWRS": ("synflow", {"shuffle": 1.0}),
    "SynFlowL2_LWRS": ("synflow_l2", {"power": 1, "shuffle": 1.0}),
    "SynFlow_Width": ("synflow", {"shuffle": [k / 10 for k in range(1, 11)]}),
    "SynFlowL2_Width": ("synflow_l2", {"power": 1, "shuffle": [k / 10 for k in range(1, 11)]}),
}
# Names that the published code takes, and then does nothing.
NEVER_WRITTEN = ("IMAG", "Normal_Init_SNIP", "Xavier_Init_SNIP", "Normal_Init_IMAG", "Xavier_Init_IMAG")


def published(name):
    """Return (type, keywords) of an experiment or ablation by its published name; ParameterError for an unknown one."""
    if name in NEVER_WRITTEN:
        raise ParameterError(f"{name!r} is a name without an experiment: the published code takes it and does nothing.")
    if name not in ALIASES:
        raise ParameterError(f"no experiment is called {name!r}; there are {listed(ALIASES)}.{hint(name, ALIASES)}")
    kind, keywords = ALIASES[name]
    return kind, dict(keywords)
