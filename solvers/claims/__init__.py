"""The claims ledger: statements of the papers, each with a function that measures it.

Importing this enters all claims into `CLAIMS`, in the order of the modules below. To add one, write
a function under `@claim` (see `ledger`) in the module of its paper.
"""

from . import rspo  # noqa: F401
from .ledger import CLAIMS, Claim, Finding, Row, Setting, Verdict

__all__ = ["CLAIMS", "Claim", "Finding", "Row", "Setting", "Verdict"]
