"""Writes down the defaults of a new notebook or parameter, by which records are named: `python -m workflow.freeze`.

What notebooks/defaults.json has already stays as it is: another default would give another meaning to old names.
"""

import json

from lib import parameters, runs


def freeze(folder):
    """Return `defaults.json` of a folder of notebooks, after what its notebooks have and it lacks was added to it.

    What stands there stays: another default would give another meaning to the names of records.
    """
    found = {}
    for path in experiments(folder):
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in parameters.declared(path).items()]
        found[path.stem] = "{\n" + ",\n".join(lines) + "\n}"
    text = ",\n".join(f"{json.dumps(name)}: {entry}" for name, entry in found.items())
    (folder / "defaults.json").write_text("{\n" + text + "\n}\n", "utf-8")
    return folder / "defaults.json"


def experiments(folder):
    """Return the notebooks of a folder that make records: neither a summary nor the explorer."""
    return [path for path in sorted(folder.glob("[!.]*.ipynb")) if not path.stem.startswith(("summary_", "explore"))]


if __name__ == "__main__":
    print(freeze(runs.ROOT / "notebooks"))
