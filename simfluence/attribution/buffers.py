"""Memory for large arrays."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def fresh(like: Tensor, *shape: int) -> Tensor:
    """Not initialised, for numbers of the same type; on a CPU from numpy, which asks for large pages: the
    first use of memory that torch allocates can take longer than what is computed there."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    bytes_ = torch.from_numpy(np.empty(math.prod(shape) * like.element_size(), np.uint8))
    return bytes_.view(like.dtype).view(shape)
