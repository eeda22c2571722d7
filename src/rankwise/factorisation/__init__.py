"""Apply a plan: a new model with the planned sites factorised."""

from .apply import factorise, factorise_

__all__ = ["factorise", "factorise_"]
