"""How the daily report writes a number."""

from __future__ import annotations

import math
from numbers import Integral, Real


def number(value: Real | float) -> str:
    """Whole numbers in full; others with four decimals, or four digits if tiny; NaN in words.

    >>> number(-1234), number(0.5), number(0.00012345), number(float("nan"))
    ('−1,234', '0.5000', '0.0001234', 'not defined')
    """
    if isinstance(value, Integral):
        return f"{int(value):,}".replace("-", "−")
    figure = float(value)
    if math.isnan(figure):
        return "not defined"
    tiny = figure != 0 and abs(figure) < 0.001
    return (f"{figure:.4g}" if tiny or math.isinf(figure) else f"{figure:,.4f}").replace("-", "−")


def places(mean: float) -> int:
    """Decimals of a mean over repetitions: four of what is below 1 (a loss, a share), two of what is in percent.

    >>> places(77.4), places(0.57)
    (2, 4)
    """
    return 2 if abs(mean) >= 1 else 4
