"""A stand-in for a CUDA GPU: tensors "on cuda" whose numbers a CPU computes, and which answer as torch would.

    with card.Card() as gpu:
        net.to("cuda")

Within the block `torch.cuda.is_available()`, and what has a tensor or a device "cuda" among its arguments gives tensors
that say they are there. As on a GPU it is an error to mix devices, to hand such a tensor to NumPy, to hold more than
`memory` bytes, and, under `set_sync_debug_mode("error")`, to wait for the GPU. While a CUDA graph is recorded nothing
is computed: every operation goes through torch's FakeTensorMode, which refuses shapes and values that depend on data,
and is noted; a replay computes what was noted on the memory of the recording. `recorded` counts such operations,
`replays` the replays, and `waits` all that waits for the GPU. Automatic casts are of products and convolutions alone.
No time is told, and Triton's kernels run in its interpreter (TRITON_INTERPRET=1), not in recordings.
"""

import contextlib
import sys
import weakref
from types import SimpleNamespace
from unittest import mock

import torch
import torch.utils.benchmark  # noqa: F401  asks as it is imported, on torch 2.11, whether there is a card
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "stand-in for a card"
HERE, HOST, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
CHECKS = (ATEN._linalg_check_errors.default, ATEN._assert_async.msg)


class OnCard(torch.Tensor):
    """A tensor that says it is on "cuda"; `inner` has its numbers.

    To the autograd engine, which would ask the driver for its streams, it says that it is on "meta".
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, inner, card):
        whole = torch.empty(inner.untyped_storage().nbytes() // inner.itemsize, dtype=inner.dtype, device=META)
        shape = whole.as_strided(inner.size(), inner.stride(), inner.storage_offset())
        made = torch.Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=HERE)
        made.inner, made.card = inner, card
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        card = next(t for t in _tensors((args, kwargs)) if isinstance(t, OnCard)).card
        return card.run(func, args, kwargs or {})

    device = property(lambda self: HERE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def untyped_storage(self):
        return self.inner.untyped_storage()  # which Triton's interpreter works on

    def get_device(self):
        return HERE.index

    def to(self, *args, **kwargs):
        device, dtype, _, order = torch._C._nn._parse_to(*args, **kwargs)
        stays = (device is None or device.type == "cuda") and dtype in (None, self.dtype) and order is None
        return self if stays and not kwargs.get("copy") else super().to(*args, **kwargs)

    def cuda(self):
        return self

    def __deepcopy__(self, memo):
        made = self.detach().clone().requires_grad_(self.requires_grad)
        return torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made

    def __getitem__(self, at):
        return super().__getitem__(_moved(at))

    def __setitem__(self, at, values):
        super().__setitem__(_moved(at), values)

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory")

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"OnCard({self.inner})"


class Graph:
    """What stands for a `torch.cuda.CUDAGraph`."""

    def __init__(self, card):
        self.card, self.steps = card, []

    def replay(self):
        self.card.replays += 1
        for function, args, kwargs, kept in self.steps:
            for own, new in zip(kept, _tensors(function(*args, **kwargs)), strict=True):
                if own is not None and own.numel():  # logsigmoid's buffer is empty on CUDA, and full on a CPU
                    own.copy_(new)


class Card(TorchDispatchMode):
    """Within its block there is a GPU of so many bytes."""

    def __init__(self, memory=2**31):
        super().__init__()
        self.memory, self.live, self.graph, self.strict = memory, weakref.WeakValueDictionary(), None, False
        self.recorded = self.replays = self.waits = 0

    def __enter__(self):
        torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does where there is no GPU
        optim, future = sys.modules["torch.optim.optimizer"], torch.__future__
        with contextlib.ExitStack() as patches:
            for name, value in self._answers().items():
                for module in (torch.cuda, torch.accelerator):  # which asks the driver itself
                    if hasattr(module, name):
                        patches.enter_context(mock.patch.object(module, name, value))
            patches.enter_context(mock.patch.object(torch, "autocast", _autocast))
            # before torch 2.12 a fake tensor makes a true one first
            patches.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None, create=True))
            known = [*optim._foreach_supported_types, OnCard]
            patches.enter_context(mock.patch.object(optim, "_foreach_supported_types", known))
            patches.callback(future.set_overwrite_module_params_on_conversion, False)
            future.set_overwrite_module_params_on_conversion(True)
            patches.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
            torch._C._set_only_lift_cpu_tensors(True)
            self.patches = patches.pop_all()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self.patches.close()

    def _answers(self):
        """Return what `torch.cuda` says of the card."""
        capturing = lambda: self.graph is not None  # noqa: E731
        stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None, is_capturing=capturing)
        nothing = lambda *_, **__: None  # noqa: E731
        return {
            "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
            "get_device_name": lambda *_: NAME, "synchronize": nothing, "empty_cache": nothing, "_lazy_init": nothing,
            "memory_allocated": self.held, "memory_reserved": self.held, "max_memory_allocated": self.held,
            "mem_get_info": lambda *_: (self.memory - self.held(), self.memory),
            "Stream": lambda *_: stream, "current_stream": lambda *_: stream,
            "stream": lambda *_: contextlib.nullcontext(), "device_of": lambda *_: contextlib.nullcontext(),
            "CUDAGraph": lambda: Graph(self), "graph": self._recording,
            "is_current_stream_capturing": capturing, "set_sync_debug_mode": self._forbid,
            "is_bf16_supported": lambda *_: True,
        }  # fmt: skip

    def _forbid(self, mode):
        self.strict = mode == "error"

    @contextlib.contextmanager
    def _recording(self, graph, stream=None):
        self.graph = graph
        try:
            yield
        finally:
            self.graph = None

    def held(self, *_):
        """Return how many bytes live tensors hold."""
        storages = [tensor.inner.untyped_storage() for tensor in list(self.live.values())]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # nothing is compiled here, and the skipping takes longer than an operation

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """Return what an operation gives: computed, or noted if a graph is being recorded."""
        if func is torch.ops.prim.device.default:
            return META if isinstance(args[0], OnCard) else args[0].device
        given = _tensors((args, kwargs))
        device, there = kwargs.get("device"), any(isinstance(t, OnCard) for t in given)
        goes = there if device is None else device.type in ("cuda", "meta")
        if not there and not goes:
            return func(*args, **kwargs)
        self._check(func, given, goes)
        if device is not None:
            kwargs = kwargs | {"device": HERE if goes else HOST}
        if self.graph is not None:
            return self._note(func, args, kwargs)
        found = func(*_inner(args), **_inner(kwargs) | ({"device": HOST} if device is not None else {}))
        return self._wrapped(found, given) if goes else found

    def _check(self, func, given, goes):
        """Raise what torch raises of an operation on tensors of two devices, or one that waits for the GPU."""
        apart, copies = [t for t in given if not isinstance(t, OnCard)], func in COPIES
        indexes = func in INDEXED and isinstance(given[0], OnCard)
        if not copies and not indexes and any(t.dim() for t in apart) and len(apart) < len(given):
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")
        between = copies and not goes or any(t.dim() or self.graph or copies for t in apart)
        by_mask = func in INDEXED and any(t.dtype in (torch.bool, torch.uint8) for t in given[1:])
        dynamic = WAITS & set(func.tags) and func not in INDEXED
        if between or by_mask or dynamic or func in CHECKS:
            self.waits += 1
            if self.strict or self.graph:
                raise RuntimeError(f"{func}: operation not permitted: it waits for the GPU, or reads the host's memory")

    def _wrapped(self, found, given):
        own = {id(t.inner): t for t in given if isinstance(t, OnCard)}
        return _mapped(torch.Tensor, lambda t: own[id(t)] if id(t) in own else self._put(t), found)

    def _put(self, inner):
        if inner.untyped_storage().nbytes() > 2**20 and self.held() + inner.untyped_storage().nbytes() > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {NAME} has {self.memory} bytes")
        made = OnCard(inner, self)
        self.live[id(made)] = made
        return made

    def _note(self, func, args, kwargs):
        """Note an operation, and return tensors of the shapes it gives, which hold nothing yet."""
        given, mode = _tensors((args, kwargs)), FakeTensorMode(allow_fallback_kernels=False)
        fakes = {id(t): FakeTensor(mode, t.inner.to(META), HERE) for t in given}
        with mode:
            there, named = _mapped(torch.Tensor, lambda t: fakes[id(t)], (args, kwargs))
            found = func(*there, **named) if func._schema.returns else None  # of some optimizers it knows nothing
        if func.is_view:
            return self._wrapped(func(*_inner(args), **_inner(kwargs)), given)
        own = {id(fake): t for t, fake in ((t, fakes[id(t)]) for t in given)}
        made = {id(f): self._put(_empty(f)) for f in _tensors(found) if id(f) not in own}
        kept = [made[id(f)].inner if id(f) in made else None for f in _tensors(found)]
        here = _inner(kwargs) | ({"device": HOST} if "device" in kwargs else {})
        self.graph.steps.append((func, _inner(args), here, kept))
        self.recorded += 1
        return _mapped(torch.Tensor, lambda f: own[id(f)] if id(f) in own else made[id(f)], found)


def _empty(fake):
    """Return memory for what a FakeTensor stands for; what reads it before a replay reads no number."""
    made = torch.empty_strided(fake.size(), fake.stride(), dtype=fake.dtype, device=HOST)
    return made.fill_(torch.nan) if made.is_floating_point() else made.zero_()


def _moved(at):
    """Return an index whose lists are tensors on the card; torch itself would leave them empty, as on "meta"."""
    parts = at if isinstance(at, tuple) else (at,)
    parts = tuple(torch.tensor(part).to(HERE) if isinstance(part, list) else part for part in parts)
    return parts if isinstance(at, tuple) else parts[0]


def _mapped(kind, change, tree):
    """Return the tree of arguments with every tensor of this kind changed; pytree's takes a hundred times as long."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, dict):
        return {name: _mapped(kind, change, part) for name, part in tree.items()}
    return type(tree)([_mapped(kind, change, part) for part in tree]) if type(tree) in (list, tuple) else tree


def _tensors(tree):
    found = []
    _mapped(torch.Tensor, found.append, tree)
    return found


def _inner(tree):
    return _mapped(OnCard, lambda t: t.inner, tree)


PRODUCTS = {
    torch.mm, torch.bmm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.conv2d,
    torch.nn.functional.conv2d, torch.nn.functional.linear, torch.nn.functional.conv_transpose2d,
}  # fmt: skip


class _Casts(TorchFunctionMode):
    """Within the block products and convolutions on the card are of this type."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            args = _mapped(OnCard, lambda t: t.to(self.dtype) if t.is_floating_point() else t, args)
        return func(*args, **(kwargs or {}))


_torchs_autocast = torch.autocast


def _autocast(device_type, dtype=None, enabled=True, **options):
    if device_type == "cuda":
        return _Casts(dtype or torch.float16) if enabled else contextlib.nullcontext()
    return _torchs_autocast(device_type, dtype, enabled, **options)
