"""The pruning laboratory's library: kernels, networks, masks, training, records and figures."""
