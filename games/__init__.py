"""What is played: payoffs, their checks, named and random games, and reading them from files."""

from games.errors import InputError
from games.matrix import MatrixGame, PreferenceGame, SkewGame, SymmetricGame

__all__ = ["InputError", "MatrixGame", "PreferenceGame", "SkewGame", "SymmetricGame"]
