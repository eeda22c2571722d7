"""Plans: the format and ranks of every site, and why; and the options they are chosen from."""

from .done import Done
from .options import Curve, Option, dense_option, option_of
from .plan import DENSE, Plan, PlanRow, site_of

__all__ = ["DENSE", "Curve", "Done", "Option", "Plan", "PlanRow", "dense_option", "option_of", "site_of"]
