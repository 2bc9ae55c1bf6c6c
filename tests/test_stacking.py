"""Widths from memory, parts that shrink when it does not suffice, and results that do not depend on either."""

import dataclasses
import warnings

import pytest
import torch

from lib import convnets, descend, nets, sets, stacking


class Memory:
    """Work that needs memory for every item and has it for `most` of them."""

    def __init__(self, most, error=torch.OutOfMemoryError):
        self.most, self.error, self.asked = most, error, []

    def __call__(self, part):
        self.asked.append(list(part))
        if len(part) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")
        return [10 * item for item in part]


def together(results):
    return [item for part, found in results for item in part], [item for _, found in results for item in found]


def test_parts_follow_one_another_in_order():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = stacking.split(Memory(99), range(7), 3)
    assert [list(part) for part, _ in results] == [[0, 1, 2], [3, 4, 5], [6]]
    assert together(results) == (list(range(7)), [10 * k for k in range(7)])
    assert len(stacking.split(Memory(99), ["a", "b"])) == 1, "0 is all of them"
    assert stacking.split(Memory(99), []) == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("most, sizes", [(4, [9, 5, 3, 3, 3]), (1, [9, 5, 3, 2, 1] + [1] * 8)])
def test_without_memory_a_part_is_halved_with_a_warning_until_it_fits(most, sizes, error):
    work = Memory(most, error)
    with pytest.warns(stacking.MemoryWarning) as told:
        results = stacking.split(work, range(9))
    assert str(told[0].message) == "no memory for 9 runs at once (CUDA out of memory): 5 go on together"
    assert [len(part) for part in work.asked] == sizes
    assert together(results) == (list(range(9)), [10 * k for k in range(9)])


def test_one_run_that_does_not_fit_is_an_error():
    with pytest.warns(stacking.MemoryWarning), pytest.raises(torch.OutOfMemoryError, match="2.00 GiB"):
        stacking.split(Memory(0), range(2))


def test_other_errors_are_not_about_memory():
    work = Memory(1, RuntimeError)
    with pytest.raises(RuntimeError, match="2.00 GiB"):
        stacking.split(work, range(4))
    assert len(work.asked) == 1


def test_a_stack_is_as_wide_as_memory_allows():
    net = nets.MLP([784, 1024, 10], ["EWN"] * 9)
    each = stacking.bytes_per_run(net, 128)
    weights = 4 * (784 * 1024 + 1024 * 2 + 1024 * 10 + 10)
    assert 5 * weights < each < 10 * weights
    free = each / stacking.SHARE
    assert [stacking.fits(net, 128, share * free) for share in (0.1, 1.01, 3.5, 8.99, 1e6)] == [1, 1, 3, 8, 9]
    assert stacking.fits(net, 128) == 9, "a CPU has no bound of its own"


@pytest.mark.parametrize(
    "net, together, descents",
    [
        (nets.MLP([784, 120, 10], ["no-WN"] * 2), 2, 2),
        (nets.MLP([784, 310, 10], ["no-WN"] * 2), 2, 2),
        (nets.MLP([784, 320, 10], ["no-WN"] * 2), 2, 1),
        (nets.MLP([784, 512, 10], ["no-WN"] * 2), 2, 1),
        (nets.MLP([784, 1000, 500, 10], ["no-WN"] * 2), 1, 1),
        (convnets.VGG((3, 32, 32), 10, ["no-WN"] * 2, width=4), 2, 2),
        (convnets.VGG((3, 32, 32), 10, ["no-WN"] * 2, width=8), 1, 1),
    ],
)
def test_a_cpu_trains_large_runs_one_by_one(net, together, descents):
    assert stacking.width(net, 128) == together and stacking.width(net, 128, kind="descent") == descents


def test_a_larger_batch_and_wider_images_need_more():
    small, large = (convnets.VGG((3, side, side), 10, ["no-WN"], width=4) for side in (32, 64))
    needs = [stacking.bytes_per_run(net, batch) for net, batch in ((small, 8), (small, 64), (large, 64))]
    assert needs[0] < needs[1] < needs[2]


def test_a_descent_split_for_want_of_memory_is_the_descent_of_its_parts(monkeypatch):
    whole = sets.load("digits")
    few = dataclasses.replace(whole, train_x=whole.train_x[:100], train_y=whole.train_y[:100])
    kinds, seeds = ["EWN", "SWN", "no-WN"], [1, 2, 3]

    def start():
        return nets.init_(nets.MLP([784, 12, 10], kinds), seeds)

    asked = descend.attempt

    def attempt(state, *arguments):
        if len(state.seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return asked(state, *arguments)

    expected, ends = descend.descend(start(), few, seeds, [-0.5], batch=16, stack=2)
    monkeypatch.setattr(descend, "attempt", attempt)
    with pytest.warns(stacking.MemoryWarning, match="3 runs"):
        found, found_ends = descend.descend(start(), few, seeds, [-0.5], batch=16)
    for mine, other in zip(found, expected, strict=True):
        assert mine[-0.5].seeds == other[-0.5].seeds
        assert torch.equal(mine[-0.5].log_loss, other[-0.5].log_loss)
        assert torch.equal(mine[-0.5].net.layers[0].weight, other[-0.5].net.layers[0].weight)
    assert len(ends) == len(found_ends) == 3
