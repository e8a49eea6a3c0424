"""A picture inside a larger file, such as a tar or Parquet shard."""


class StoredPicture:
    """Stands where the file of a picture would. ``str()`` tells where it is, for messages."""

    def read(self) -> bytes:
        """Its bytes, as a file of its own would hold them."""
        raise NotImplementedError(f"{type(self).__name__} must read its bytes")

    def sha256(self) -> str:
        """SHA-256 in hex of what decides its bytes, found without reading them: the shard's own hash, and the place."""
        raise NotImplementedError(f"{type(self).__name__} must tell its content")
