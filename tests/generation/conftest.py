"""The device of the kernel tests, for the kernel of beam search."""

from tests.network.kernels.conftest import device

__all__ = ["device"]
