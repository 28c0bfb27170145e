"""Errors of devices."""


from host.errors import TallyError

__all__ = ["DeviceError", "MismatchError"]


class DeviceError(TallyError):
    """A device cannot do what it was asked; the message is one sentence for the user."""


class MismatchError(DeviceError):
    """A device computed a product that the golden model did not."""
