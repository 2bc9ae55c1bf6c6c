"""Published names: what the code of the PHEW study (arXiv 2010.11354) calls its experiments, and what they are here."""

# Published name: (notebook, type). What a type does is in `lib.studies.phew.study`.
PUBLISHED = {
    "Baseline_FC": ("phew_density", "dense"),
    "PHEW": ("phew_density", "phew"),
    "PHEW_Res": ("phew_density", "phew_res"),
    "SNIP": ("phew_density", "snip"),
    "GRASP": ("phew_density", "grasp"),
    "Random": ("phew_density", "random"),
    "SynFlow": ("phew_density", "synflow"),
    "SynFlowL2": ("phew_density", "synflow_l2"),
    "MAG": ("phew_density", "magnitude_trained"),
    "Inverse_PHEW": ("phew_density", "inverse"),
    "Uniform_PHEW": ("phew_density", "uniform"),
    "Kernel_PHEW": ("phew_density", "kernel_walk"),
    "PHEW2": ("phew_density", "squared"),
    "Normal_Init_PHEW": ("phew_density", "normal_init"),
    "Xavier_Init_PHEW": ("phew_density", "xavier_init"),
    "ReInit_PHEW": ("phew_density", "reinit"),
    "ReInit_Evci_PHEW": ("phew_density", "evci"),
    "ReInit_Liu_PHEW": ("phew_density", "liu"),
    "ReInit_Evci_Random": ("phew_density", "evci_random"),
    "ReInit_Liu_Random": ("phew_density", "liu_random"),
    "SynFlow_LWRS": ("phew_density", "synflow_shuffled"),
    "SynFlowL2_LWRS": ("phew_density", "synflow_l2_shuffled"),
    "SynFlow_Width": ("phew_width", "synflow"),
    "SynFlowL2_Width": ("phew_width", "synflow_l2"),
}
# Names that the published code takes, and then does nothing.
NEVER_WRITTEN = ("IMAG", "Normal_Init_SNIP", "Xavier_Init_SNIP", "Normal_Init_IMAG", "Xavier_Init_IMAG")


def meaning(name):
    """Return what a published name is here, as a clause, or "" for a name that the study does not have."""
    if name in NEVER_WRITTEN:
        return f"{name!r} is a name without an experiment: the published code takes it and does nothing"
    if name not in PUBLISHED:
        return ""
    notebook, kind = PUBLISHED[name]
    return f"the published {name!r} is type {kind!r} of {notebook} here"
