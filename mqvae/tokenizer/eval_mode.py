"""Eval mode of a network that several threads use together."""

from threading import Lock

from torch import nn

_LOCK = Lock()  # not an object's own, which could not be copied then


class EvalMode:
    """Inside, a network is in eval mode; threads may be inside together.

    The last to leave restores the modes that the first found.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._inside = 0  # threads
        self._training: list[nn.Module] = []

    def __enter__(self) -> None:
        with _LOCK:
            if not self._inside:
                self._training = [part for part in self._network.modules() if part.training]
                self._network.eval()
            self._inside += 1

    def __exit__(self, *rest: object) -> None:
        with _LOCK:
            self._inside -= 1
            if not self._inside:
                for part in self._training:
                    part.training = True
