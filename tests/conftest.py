"""What every test runs under, and every process that a test starts: no window for figures, two threads."""

import os

# Before anything imports matplotlib or torch.
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "2")  # the products are tiny: more threads only get in the way
