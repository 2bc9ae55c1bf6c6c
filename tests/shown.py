"""The methods that CONTRIBUTING shows, word for word: nothing else knows them."""

import re
import textwrap

import pytest

from lib import methods, runs

CONTRIBUTING = (runs.ROOT / "CONTRIBUTING.md").read_text("utf-8")
FISHER, ACTIVITY = map(textwrap.dedent, re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL))


def _method(text, of):
    """Return the `Method` that a text makes; the register stays what it was."""
    methods.names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "METHODS", {"weights": {}, "units": {}})
        exec(text, {"__name__": "mine"})
        (made,) = methods.METHODS[of].values()
    return made


SHOWN = [_method(FISHER, "weights"), _method(ACTIVITY, "units")]
