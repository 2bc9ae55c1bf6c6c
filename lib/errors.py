"""What goes wrong, told so that the message is enough: the value, what is allowed, and the way out."""

import difflib
import errno
import functools
import math
import re
from pathlib import Path

NO_ROOM = errno.ENOSPC, errno.EDQUOT
UNWRITABLE = *NO_ROOM, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR  # of an OSError: `unwritable` tells it


class Told:
    """An exception whose message is the whole story: notebooks show it without the stack of calls."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(Told, ValueError):
    """A parameter that is unknown, of the wrong kind or no choice; the message says what is allowed."""


class DataError(Told, RuntimeError):
    """A data set that is missing, damaged or unknown; the message says the way out."""


class RecordError(Told, RuntimeError):
    """A record that cannot be believed, found or written; the message names the file and the way out."""


def choice(what: str, value, allowed):
    """Return `value`; ParameterError, which says what it may be and what may be meant, if it is none of `allowed`."""
    if value not in [*allowed]:  # a list can be looked for in a list
        raise ParameterError(f"{what} is {value!r}; allowed are {listed(allowed)}.{hint(value, allowed)}")
    return value


def distinct(types) -> list[str]:
    """Return the types of a notebook, as a list; ParameterError if two have one name, as a method may call itself."""
    found = [*types]
    if twice := [name for name in dict.fromkeys(found) if found.count(name) > 1]:
        raise ParameterError(f"two types are called {twice[0]!r}, one of them by a method: give it another name")
    return found


def number(what: str, value, interval: str, whole: bool = False):
    """Return `value` as Python has it; ParameterError if it is no number, or no `whole` one, in "[0, 1)" say."""
    plain = value.item() if getattr(value, "shape", None) == () else value  # of an array or a tensor without axes
    if isinstance(plain, bool) or not isinstance(plain, int if whole else int | float) or not within(plain, interval):
        kind = "whole numbers" if whole else "numbers"
        raise ParameterError(f"{what} is {value!r}; allowed are {kind} in {interval}")
    return plain


def instance(what: str, value, kind: type, needed: str):
    """Return `value`; ParameterError, which says what is needed, if it is not of this kind; what: "net is", say."""
    if not isinstance(value, kind):
        raise ParameterError(f"{what} a {type(value).__name__}; needed is {needed}")
    return value


def flags(defaults: dict, given: dict) -> None:
    """Raise ParameterError for the first of the values `given` that is not True or False where its default is."""
    for name, default in defaults.items():
        if isinstance(default, bool) and not isinstance(given.get(name, default), bool):
            raise ParameterError(f"{name} is {given[name]!r}; allowed are True and False")


def within(number: float, interval: str) -> bool:
    """Return whether a number lies in an interval such as "[0, 1)" or "[1, 2^31)"; what is not a number does not."""
    low, high = ends(interval)
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


@functools.cache
def ends(interval: str) -> tuple[float, float]:
    """Return the two ends of an interval, exactly: integers stay integers, which are compared without rounding."""
    return tuple(map(_end, re.fullmatch(r"[\[(](.+), (.+)[\])]", interval).groups()))


def _end(text: str) -> float:
    base, _, exponent = text.partition("^")
    return math.inf if text == "inf" else int(base) ** int(exponent or 1)


def one_each(runs: int, **lists) -> None:
    """Return nothing; ValueError for a list, by its name, that has not one entry for each of so many runs."""
    for name, values in lists.items():
        alone = not hasattr(values, "__len__") or getattr(values, "shape", None) == ()
        if alone or len(values) != runs:
            given = f"{name} = {values!r}" if alone else f"{len(values)} {name}"
            raise ValueError(f"{given} for a stack of {runs} runs; needed is a list of one per run, such as [1]")


def unwritable(path: Path, error: OSError) -> RecordError:
    """Return the error that says `path`, a file or a folder, cannot be written, and what to do about it."""
    if error.errno in NO_ROOM:
        way_out = "Make room there, or take a folder on another disk"
    else:
        way_out = "Make it writable, or take a folder of yours"
    return RecordError(
        f"cannot write {path} ({error.strerror or error}): nothing was saved there, and what stood there still stands. "
        f"{way_out}, for records by the environment variable PRUNING_RUNS, and run again: what has its record is not "
        f"made again."
    )


def listed(names) -> str:
    """Return names as a readable list, for messages."""
    return ", ".join(map(str, names)) or "none"


def hint(word, known) -> str:
    """Return " Did you mean …?" if a known word is close, whatever the case of its letters; else ""."""
    folded = {str(name).casefold(): name for name in known}
    close = difflib.get_close_matches(str(word).casefold(), folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""
