"""DropConnect: weights that are dropped while a layer trains, other ones for every example."""

from lib.kernels import chance, twins
from lib.networks.layers import Dropout


class DropConnect(Dropout):
    """R DropConnects (Wan et al. 2013) of a layer: in `train()` mode a weight is 0 with `chance`, or grows in turn.

    Every example has weights of its own. What a unit sums up is drawn as such a sum of many inputs is: normal, with the
    mean W x + b and the variance chance / (1 - chance) W² x² (Wang & Manning 2013), so that no masks are made.
    """

    def forward(self, layer, x):
        if not self.training:
            return layer(x)
        if layer.normalised or layer.steps:
            raise ValueError("DropConnect drops plain weights that an optimizer trains: take no-WN and a Trainer")
        mean, square = layer(x), layer.weight.square()
        spread = twins.linear(x.square(), square, layer.scale, None, layer.norm, normalised=False).clamp_min(1e-12)
        noise = chance.normals(self.key, self.step, mean[0].numel()).view_as(mean).to(mean.dtype)
        self.step += 1
        return mean + (spread * (self.chance / (1 - self.chance))).sqrt() * noise
