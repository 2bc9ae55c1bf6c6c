"""A training step that is launched as one: recorded as a CUDA graph and replayed; on a CPU it is simply called.

A step of a small network is hundreds of short kernels, and launching them one by one takes longer than they do. What
was recorded is replayed on the same memory: inputs are copied there, and everything else that the step reads must stay
where it was, parameters, rates and masks; who replaces one of them makes a new `Step`.
"""

import os
import warnings

import torch

MEASURED = {  # loop -> by what replaying beats launching and on which GPU; None: unmeasured, so steps are launched
    "descend": None,  # `descend.descend`
    "fit": None,  # `trainer.Trainer.fit`
}
VARIABLE = "PRUNING_CAPTURE"
CHOICES = ("", "0", "1")
WARM_UP = 3  # steps taken before one is recorded: libraries choose algorithms, optimizers make their state


class CaptureWarning(UserWarning):
    """A step could not be recorded and is launched kernel by kernel: slower, with the same results."""


def wanted(loop, device):
    """Return whether the steps of a loop of `MEASURED` are to be recorded on this device.

    On CUDA, where that has been measured to be faster, or PRUNING_CAPTURE=1 asks for it; 0 forbids it.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice not in CHOICES:
        raise ValueError(f"${VARIABLE} is {choice!r}; allowed are 1 (record), 0 (never) and nothing (where measured)")
    return device.type == "cuda" and (choice == "1" or not choice and MEASURED[loop] is not None)


class Step:
    """`function(*tensors)`, returning a tensor or a tuple of them, called many times; recorded only if `recorded`.

    The first `WARM_UP` calls are ordinary ones, on the stream that will record. Then, with tensors of the same shapes,
    the recording is replayed; with others, as of the last batch of a pass, the function is called. What a replay
    returns is overwritten by the next one. A function that cannot be recorded, because it waits for the device, is
    called for good, with a `CaptureWarning`.
    """

    def __init__(self, function, recorded):
        self.function, self.recorded = function, recorded
        self.shapes, self.calls, self.graph = None, 0, None

    def __call__(self, *tensors):
        if not self.recorded:
            return self.function(*tensors)
        shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if self.shapes is None:
            self.shapes, self.stream = shapes, torch.cuda.Stream(tensors[0].device)
        if shapes != self.shapes:
            return self.function(*tensors)
        if self.graph is None and self.calls < WARM_UP:
            self.calls += 1
            return self._aside(tensors)
        if self.graph is None and not self._record(tensors):
            return self.function(*tensors)
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.outputs

    def _aside(self, tensors):
        """Call the function on the recording's stream, before and after which the present stream waits."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(*tensors)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _record(self, tensors):
        """Record the function, which computes nothing yet; return whether that was possible."""
        self.inputs = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.outputs = self.function(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.recorded = False
            said = f"a step cannot be recorded, so it is launched kernel by kernel: {error}"
            warnings.warn(said, CaptureWarning, stacklevel=4)
            return False
        self.graph = graph
        return True
