"""Whether probabilities are what they say: predicted against observed.

Shapes: B impressions. Labels are 0 or 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evaluate.metrics.binary import checked_probabilities

BINS = 15


def calibration_ratio(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Sum of probabilities / number of positives: above 1 the model promises too much. NaN without positives.

    >>> calibration_ratio([1, 0, 0, 1], [0.5, 0.25, 0.25, 0.5])
    0.75
    """
    labels_B, p_B = checked_probabilities(labels, probabilities)
    return float(p_B.sum() / labels_B.sum()) if labels_B.any() else float("nan")


def calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: mean over impressions of |mean p - share of positives| of their bin.

    `bins` equally wide ones (Guo et al., 2017, Eq. 3). NaN without rows; UsageError as in `log_loss`.

    >>> calibration_error([1, 0, 0, 1], [0.5, 0.5, 0.25, 0.75])
    0.125
    """
    labels_B, p_B = checked_probabilities(labels, probabilities)
    bin_B = np.minimum((p_B * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_B, p_B - labels_B, minlength=bins)
    return float(np.abs(gaps).sum() / len(p_B)) if len(p_B) else float("nan")
