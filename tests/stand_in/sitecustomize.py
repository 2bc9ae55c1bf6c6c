"""With this folder on PYTHONPATH every Python has the stand-in for a card, `card`, from the import of torch on."""

import importlib.util
import sys
from pathlib import Path

CARD, MEMORY = Path(__file__).resolve().parents[1] / "card.py", 2**33


class Finder:
    """Finds torch, as all others would, and puts the card in when it has been imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(Finder)
        found = importlib.util.find_spec(name)
        load = found.loader.exec_module

        def load_and_put_in(module):
            load(module)
            # By a name of its own: who imports torch may be `card` itself, of which there is only half then.
            spec = importlib.util.spec_from_file_location("card_of_the_process", CARD)
            spec.loader.exec_module(card := importlib.util.module_from_spec(spec))
            card.Card(MEMORY).__enter__()

        found.loader.exec_module = load_and_put_in
        return found


sys.meta_path.insert(0, Finder)
