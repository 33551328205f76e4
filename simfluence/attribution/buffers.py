"""Buffers for large arrays."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def fresh(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of this shape, of the type and on the device of another.

    On a CPU the memory comes from numpy, which asks for large pages: the first use of memory that torch
    allocates can take longer than the computation that fills it.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    bytes_ = torch.from_numpy(np.empty(math.prod(shape) * like.element_size(), np.uint8))
    return bytes_.view(like.dtype).view(shape)
