"""Seeds of independent random streams."""

from __future__ import annotations

import numpy as np


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers; different ones give independent streams, zeros at the end apart."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
