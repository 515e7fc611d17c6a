"""Games: payoff tables and their validation, named and random games, loading from files.

>>> from games import PreferenceGame, zoo
>>> PreferenceGame([[0.5, 0.7], [0.3, 0.5]], labels=("new", "old"), name="A/B test").value
0.5
>>> zoo.get("random:50", seed=1).n
50
"""

from games import startup  # first, for the time that the others take

# isort: split
from games import zoo
from games.data import DataGame
from games.errors import InputError
from games.loading import load, load_reference
from games.matrix import MatrixGame, PreferenceGame, SkewGame, SymmetricGame
from games.saddle import SaddlePointGame
from games.wins import from_wins

__all__ = [
    "DataGame",
    "InputError",
    "MatrixGame",
    "PreferenceGame",
    "SaddlePointGame",
    "SkewGame",
    "SymmetricGame",
    "from_wins",
    "load",
    "load_reference",
    "startup",
    "zoo",
]
