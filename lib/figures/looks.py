"""How every type looks in all figures of the repository, and what raw names are called there."""

import re

from matplotlib.axis import Axis
from matplotlib.text import Text

# Paul Tol's bright scheme, which readers with colour-blindness can tell apart; the grey is for the rest.
COLOURS = "#4477AA #EE6677 #228833 #CCBB44 #66CCEE #AA3377 #BBBBBB".split()
BLUE, RED, GREEN, YELLOW, CYAN, PURPLE, GREY = COLOURS
BLACK = "#000000"  # of what methods are measured against
LOOKS = {  # type -> (label, colour, marker, dashes)
    "EWN": ("EWN", BLUE, "o", "-"),
    "SWN": ("SWN", RED, "s", "--"),
    "no-WN": ("no-WN", GREEN, "^", ":"),
    "weight": ("weights", BLUE, "o", "-"),
    "neuron": ("neurons", RED, "s", "--"),
    "small": ("trained small", PURPLE, "D", ":"),
    "dpp_edge": ("DPP edge", BLUE, "o", "-"),
    "dpp_node": ("DPP node", CYAN, "D", "--"),
    "random_edge": ("random edge", BLACK, "s", "-"),
    "random_node": ("random node", GREY, "P", "--"),
    "magnitude_edge": ("magnitude edge", RED, "^", "-"),
    "outgoing_l1_node": ("outgoing L1 node", PURPLE, "v", "--"),
    "dense": ("dense", BLACK, "h", "--"),
    "phew": ("PHEW", BLUE, "o", "-"),
    "phew_res": ("PHEW, nested", BLUE, "D", "--"),
    "synflow": ("SynFlow", RED, "^", "-"),
    "synflow_l2": ("SynFlow-L2", PURPLE, "v", "--"),
    "snip": ("SNIP", GREEN, "D", ":"),
    "grasp": ("GraSP", YELLOW, "P", "-."),
    "snip_frozen": ("SNIP, norms as they start", GREEN, "d", "--"),
    "grasp_frozen": ("GraSP, norms as they start", YELLOW, "p", "--"),
    "magnitude_init": ("magnitude", CYAN, "X", "--"),
    "magnitude_trained": ("magnitude, trained", BLACK, "*", ":"),
    "random": ("random", GREY, "d", "-."),
    "none": ("not pruned", BLACK, "h", "-"),
    "contribution": ("contribution", BLUE, "o", "-"),
    "worst": ("worst first", RED, "v", "--"),
    "magnitude": ("magnitude", CYAN, "X", "--"),
    # Of the arena, where the ends of names say what is pruned, and when.
    "magnitude_layer": ("magnitude by layer", PURPLE, "^", "-."),
    "lamp": ("LAMP", BLUE, "s", "-"),
    "taylor": ("Taylor", GREEN, "v", "--"),
    "hessian": ("Hessian", RED, "P", ":"),
    "wanda": ("Wanda", CYAN, "<", "-"),
    "wanda_unit": ("Wanda by unit", YELLOW, ">", ":"),
    "dpp": ("DPP", YELLOW, "*", "-"),
    "growth": ("growth", RED, "s", "-."),
    "outgoing_l1": ("outgoing L1", PURPLE, "v", "-"),
    "fpgm": ("FPGM", GREEN, "^", "-"),
    # Ablations have the colour of what they take apart: another walk, kernels, start, weights under the mask.
    "inverse": ("PHEW, inverse", BLUE, "v", ":"),
    "uniform": ("PHEW, uniform", BLUE, "^", "-."),
    "squared": ("PHEW, squared", BLUE, "8", ":"),
    "kernels": ("PHEW, whole kernels", BLUE, "P", ":"),
    "kernel_walk": ("PHEW, kernel walk", BLUE, "X", "--"),
    "normal_init": ("PHEW, normal start", BLUE, "d", ":"),
    "xavier_init": ("PHEW, Xavier start", BLUE, "*", "-."),
    "reinit": ("PHEW, nested, drawn anew", BLUE, "<", "--"),
    "evci": ("PHEW, Evci start", BLUE, ">", ":"),
    "liu": ("PHEW, Liu start", BLUE, "p", "-."),
    "evci_random": ("Evci, random", GREY, "<", "--"),
    "liu_random": ("Liu, random", GREY, ">", ":"),
    "synflow_shuffled": ("SynFlow, shuffled", RED, "<", ":"),
    "synflow_l2_shuffled": ("SynFlow-L2, shuffled", PURPLE, ">", "-."),
}


WORDS = {  # of titles: data sets, networks, splits
    "mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
    "digits": "digits", "digits32": "digits of 32 pixels", "digits64": "digits of 64 pixels",
    "tiny_imagenet": "Tiny ImageNet", "celeba": "CelebA", "train": "training images", "test": "test images",
    **{f"resnet{layers}": f"ResNet{layers}" for layers in (18, 20, 32, 34, 50, 101, 152)},
    **{f"vgg{layers}{norms}": f"VGG{layers}" for layers in (11, 13, 16, 19) for norms in ("", "_bn")},
    "wide_resnet20": "wide ResNet20",
}  # fmt: skip
MARKERS, DASHES = "os^vDPXd<>h*p8", ("-", "--", ":", "-.")  # of types that have no look of their own


def minus(figure):
    """Write the numbers below zero in the texts of a figure with a minus sign, for which programs put a hyphen."""
    for text in _texts(figure):
        text.set_text(re.sub(r"(?<![\w${^.-])-(?=\d)", "−", text.get_text()))


def _texts(artist):
    """Return all texts in an artist but those of ticks, which are many, and whose formatters write them when drawn."""
    if isinstance(artist, Axis):
        return [artist.label]
    return [artist] * isinstance(artist, Text) + [text for child in artist.get_children() for text in _texts(child)]
