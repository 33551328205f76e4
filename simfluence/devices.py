"""Where torch computes."""

from __future__ import annotations

import torch


def chosen_device(name: str | None = None, usual: str = "cuda") -> torch.device:
    """The device that torch knows by this name; None is the usual one, a GPU if torch finds one.

    usual : "cpu", or another kind of device, which is taken where it is.

    Raises ValueError if the named device is not here.
    """
    if name is None:
        return torch.device(usual if usual == "cuda" and torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        said = str(error).splitlines()[0]
        raise ValueError(
            f"device must be null, cpu, cuda or cuda:1, …, and be there; got {name!r}: {said}"
        ) from None
    return device
