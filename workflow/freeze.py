"""Writes down the defaults of a new notebook or parameter, by which records are named: `python -m workflow.freeze`.

What notebooks/defaults.json has already stays as it is: another default would give another meaning to old names.
"""

from lib import parameters, runs

if __name__ == "__main__":
    print(parameters.freeze(runs.ROOT / "notebooks"))
