"""Where torch computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def chosen_device(name: str | None = None) -> torch.device:
    """The device that torch knows by this name; None is the GPU if torch finds one, else the CPU.

    Raises ValueError if there is no such device here that holds numbers.
    """
    import torch  # takes a second, and is needed only where something is computed by it

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # "meta" has no numbers
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        said = str(error).splitlines()[0]
        raise ValueError(
            f"device must be null, cpu, cuda or cuda:1, …, and be there; got {name!r}: {said}"
        ) from None
    return device
