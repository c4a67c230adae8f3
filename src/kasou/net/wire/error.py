"""The one error that a malformed packet is."""

from kasou.errors import RemoteError


class ParseError(RemoteError):
    """Received bytes are not what their place says they are; the layer drops and counts them."""
