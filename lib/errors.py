"""What goes wrong, told so that the message is enough: the value, what is allowed, and the way out."""

from __future__ import annotations

import difflib
from pathlib import Path


class Told:
    """An exception whose message is the whole story: notebooks show it without the stack of calls."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(Told, ValueError):
    """A parameter that is unknown, of the wrong kind or no choice; the message says what is allowed."""


class RecordError(Told, RuntimeError):
    """A record that cannot be believed, found or written; the message names the file and the way out."""


def unwritable(folder: Path, error: OSError) -> RecordError:
    """Return the error that says `folder` cannot be written, and what to do about it."""
    return RecordError(
        f"cannot write in {folder} ({error.strerror or error}): nothing could be saved there. Make the "
        f"folder writable, or set the environment variable PRUNING_RUNS to a folder of yours."
    )


def listed(names) -> str:
    """Return names as a readable list, for messages."""
    return ", ".join(map(str, names)) or "none"


def hint(word, known) -> str:
    """Return " Did you mean …?" if a known word is close, whatever the case of its letters; else ""."""
    folded = {str(name).casefold(): name for name in known}
    close = difflib.get_close_matches(str(word).casefold(), folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""
