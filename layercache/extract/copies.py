"""Copies between the host and a device that let a GPU go on working.

An ordinary copy waits until everything before it has run, which leaves a GPU idle while Python prepares
the next batch. These go through pinned memory; what comes back is read only after its event has passed (a
`non_blocking` copy that is not waited for reads memory that is not there yet).
"""

import numpy as np
import numpy.typing as npt
import torch


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on a device, of the same shape and dtype, without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda" and torch.cuda.is_available():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class HostCopy:
    """A tensor on its way to the host.

    Args:
        tensor: on any device; may be changed or freed at once.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.cpu()

    def numpy(self) -> npt.NDArray[np.generic]:
        """Wait until it is there; return it as an array of the same shape and dtype."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()
