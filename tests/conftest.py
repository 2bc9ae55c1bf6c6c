"""What every test runs under, and every process that a test starts: no window for figures, one thread."""

import os

# Before anything imports matplotlib or torch.
os.environ["MPLBACKEND"] = "Agg"
# The products are tiny, so that a second thread gains nothing; and where another program has the second core, the
# threads wait for each other at every product: a suite of minutes then takes an hour.
os.environ.setdefault("OMP_NUM_THREADS", "1")
