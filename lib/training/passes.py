"""One pass of SGD steps on a rescaled loss: through any stack by autograd, and written out for one ReLU network.

Both take, of each batch, only the examples that are to count; their weights are those of the whole batch.
"""

import math

import torch

from lib.kernels import capture, twins
from lib.networks import nets

LOOK_EVERY = 32  # batches between two looks at whether the loss is still a number


def make(net):
    """Return what takes passes through `net`, in place: `ReluSteps` for one ReLU network on a CPU, else `Steps`.

    Of a pass through the MNIST network products are 0.8 to 0.86 of the time, by autograd 0.5 (one core, AVX-512).
    """
    written_out = (
        isinstance(net, nets.MLP) and net.activation == "relu" and not net.drops and nets.runs(net) == 1
        and next(net.parameters()).device.type == "cpu"
    )  # fmt: skip
    return ReluSteps(net) if written_out else Steps(net)


def batches(orders, counted, batch):
    """Yield (index, examples): of each batch of `orders (R, N)` those that count, and how many it has in all.

    counted: bool (R, N) by example, or None for all. index is `(n,)` where all runs have one order, and then counts
    what does in any of them; else `(R, n)`, filled up with examples of the same batch, which may well take part.
    A batch in which none counts is left out.
    """
    shared, total = bool((orders == orders[:1]).all()), orders.shape[1]
    orders = orders[0] if shared else orders
    if counted is None:
        yield from ((index, index.shape[-1]) for index in orders.split(batch, -1))
        return
    here = counted.any(0)[orders] if shared else counted.gather(1, orders)
    whole = torch.nn.functional.pad(here, (0, -total % batch)).unflatten(-1, (-1, batch)).sum(-1)
    sizes = (whole if shared else whole.amax(0)).tolist()
    if shared:
        parts = orders[here].split(sizes)
    else:
        ranked = zip(orders.split(batch, -1), here.split(batch, -1), sizes, strict=True)
        parts = (
            index.gather(1, counts.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size])
            for index, counts, size in ranked
        )
    for k, (index, size) in enumerate(zip(parts, sizes, strict=True)):
        if size:
            yield index, min(batch, total - k * batch)


class Steps:
    """Passes of SGD steps on e^-level · loss through one stack, whose tensors stay where they are."""

    def __init__(self, net):
        self.net, first = net, next(net.parameters())
        self.rate = torch.empty(nets.runs(net), dtype=first.dtype, device=first.device)
        self.level = torch.empty_like(self.rate, dtype=torch.float64)
        self.take = capture.Step(self._take, capture.wanted("descend", first.device))

    def epoch(self, x, y, orders, rate, level, batch, counted=None):
        """Take one pass with rates and levels (R,), examples in the `orders (R, N)`, of which some count: `batches`.

        On a CPU it gives up once no run has a finite loss, which none gets back; a GPU would have to be waited for.
        """
        self.rate.copy_(rate)
        with nets.sgd_in_backward(self.net, self.rate):
            for k, (at, examples) in enumerate(batches(orders.to(x.device), counted, batch)):
                self.level.copy_(level + math.log(examples / at.shape[-1]))
                rescaled = self.take(x[at], y[at])
                if x.device.type == "cpu" and k % LOOK_EVERY == 0 and not bool(rescaled.isfinite().any()):
                    return

    def logits(self, x, index):
        """Return the logits `(R, n, C)` of the examples `index (n,)` of `x (N, I)`."""
        return self.net(x.index_select(0, index))

    def _take(self, x, y):
        rescaled = (twins.log_loss(self.net(x), y).double() - self.level).exp()
        rescaled.sum().backward()
        return rescaled.detach()


class ReluSteps:
    """What `Steps` is, of one network of linear layers and ReLUs on a CPU, without autograd and in memory of its own.

    Examples are columns: for `v xᵀ` two threads take a tenth to a third less than for `x vᵀ`, one as long (784 to 1024,
    128 examples, Zen 4). The matrices are read and written by products alone. What a step does to the length of a
    normalised row, it does to a factor of the row, which goes into the matrix at the end of the pass.
    """

    def __init__(self, net):
        self.net = net
        self.layers = [_Rows(layer) for layer in nets.layers(net).values()]
        self.inputs = torch.empty(0)

    @torch.no_grad()
    def epoch(self, x, y, orders, rate, level, batch, counted=None):
        """Take one pass; the arguments are those of `Steps.epoch`. It gives up once the loss is not finite."""
        rate, level = float(rate), float(level)
        for at, examples in batches(orders, counted, batch):
            if not self._take(x, y, at, rate, level + math.log(examples / len(at))):
                break
        for layer in self.layers:
            layer.finish()

    @torch.no_grad()
    def logits(self, x, index):
        """Return the logits `(1, n, C)` of the examples `index (n,)` of `x (N, I)`; the next call overwrites them."""
        return self._forward(x, index)[-1].t()[None]

    def _forward(self, x, index):
        """Return the inputs of every layer, and the logits, `(I, n)` and `(C, n)`."""
        if len(self.inputs) < len(index) or self.inputs.dtype != x.dtype:
            self.inputs = x.new_empty(len(index), x.shape[1])
            for layer in self.layers:
                layer.make_room(len(index))
        values = [torch.index_select(x, 0, index, out=self.inputs[: len(index)]).t()]
        for layer in self.layers[:-1]:
            values.append(layer.forward(values[-1]).relu_())
        return [*values, self.layers[-1].forward(values[-1])]

    def _take(self, x, y, index, rate, level):
        """Return whether the rescaled loss was finite; take the step if so."""
        *inputs, logits = self._forward(x, index)
        loss, delta = twins.log_loss_and_gradient(logits.t()[None], y[index])
        rescaled = math.exp(min(float(loss) - level, 700.0))
        if not math.isfinite(rescaled):
            return False
        delta = delta[0].mul_(rescaled).t()
        for k, layer in reversed(list(enumerate(self.layers))):
            back = layer.backward(delta, inputs[k], rate, k > 0)
            if k > 0:
                delta = torch.ops.aten.threshold_backward.grad_input(back, inputs[k], 0, grad_input=back)
        return True


class _Rows:
    """One linear layer of `ReluSteps`; while a pass lasts, its matrix is `v (O, I)`, its rows times `length (O,)`."""

    def __init__(self, layer):
        self.v, self.s = layer.weight.detach()[0], layer.scale.detach()[0]
        self.bias = None if layer.bias is None else layer.bias.detach()[0, :, None]
        self.code, self.length = int(layer.norm[0]), torch.ones_like(self.s)

    def make_room(self, batch):
        """Take memory for so many examples, once: what is allocated anew in every step costs a tenth of it."""
        self.rooms = [(rows, self.v.new_empty(rows * batch)) for rows in (len(self.v), *self.v.shape)]

    def forward(self, x):
        """Return `(O, n)`, the layer's output for x `(I, n)`; it is overwritten by the next one."""
        n = x.shape[1]  # no matrix has a stride by the room: products may round by it, and after a resume it is another
        self.products, self.outputs, self.back = (room[: rows * n].view(rows, n) for rows, room in self.rooms)
        products = torch.mm(self.v, x, out=self.products)
        if self.code == twins.NO_WN:
            return products if self.bias is None else products.add_(self.bias)
        self.size = torch.linalg.vector_norm(self.v, dim=1)
        self.factor = (self.s.exp() if self.code == twins.EWN else self.s) / self.size  # of v, to the weights
        outputs = torch.mul(products, self.factor[:, None], out=self.outputs)
        return outputs if self.bias is None else outputs.add_(self.bias)

    def backward(self, delta, x, rate, wanted):
        """Take the step of the gradient `delta (O, n)` by the outputs; return that by the inputs `x` if `wanted`."""
        if self.bias is not None:
            self.bias.sub_(delta.sum(1, keepdim=True), alpha=rate)
        if self.code != twins.NO_WN:
            along = self.products.mul_(delta).sum(1)
            delta = delta.mul_(self.factor[:, None])
        back = torch.mm(self.v.t(), delta, out=self.back) if wanted else None
        if self.code != twins.NO_WN:
            delta = self._turned(delta, along, rate)
        self.v.addmm_(delta, x.t(), alpha=-rate)
        return back

    def _turned(self, delta, along, rate):
        """Return `delta` for the step of v, once s and the lengths took theirs.

        along `(O,)` is <v, G>, with G the gradient of the effective weights.
        """
        slope = along * self.factor if self.code == twins.EWN else along / self.size
        old, growth = self.length, rate * self.factor * along / (self.length * self.size).square()
        self.length = old * (1 + growth)
        self.s.sub_(slope, alpha=rate)
        return delta / (old * self.length)[:, None]

    def finish(self):
        """Give the matrix the lengths of its rows."""
        if self.code != twins.NO_WN:
            self.v.mul_(self.length[:, None])
            self.length = torch.ones_like(self.length)
