"""An HTTP/1.1 response read incrementally: the framing that ``helpers.load.client.wire`` leaves for later."""


class ProtocolError(Exception):
    """The bytes that came back are not HTTP/1.1."""


class Response:
    """An incremental HTTP/1.1 response reader: ``feed`` bytes as they come, get payload back."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False
        self.keep_alive = True
        self.rest = b""  # not decoded yet; once done, bytes that do not belong to this response
        self._left: int | None = None  # bytes of body or chunk still to come, None: until close
        self._read = self._head

    def feed(self, data: bytes) -> bytes:
        """Return the payload that ``data`` completes.

        Raises:
            ProtocolError: the bytes are not HTTP/1.1.
        """
        self.rest = self.rest + data if self.rest else data
        out: list[bytes] = []
        while self.rest and not self.done and self._read(out):
            pass
        return out[0] if len(out) == 1 else b"".join(out)

    def eof(self) -> bool:
        """Tell that the connection closed; true when that is how this response rightly ends."""
        complete = self.done or (self._read == self._until_close)
        self.done, self.keep_alive = complete, False
        return complete

    def _head(self, out: list[bytes]) -> bool:
        head, found, rest = self.rest.partition(b"\r\n\r\n")
        if not found:
            if len(head) > 65536 or not b"HTTP/1.".startswith(head[:7]):
                raise ProtocolError(f"not an HTTP/1.1 answer: {head[:40]!r}")
            return False
        self.rest = rest
        status, *lines = head.split(b"\r\n")
        version, _, code = status.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code[:3].isdigit():
            raise ProtocolError(f"not an HTTP/1.1 answer: {status[:40]!r}")
        self.status = int(code[:3])
        fields = (line.decode("latin-1").partition(":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        if 100 <= self.status < 200:
            return True  # an interim answer, the real one follows
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection and (
            version == b"HTTP/1.1" or "keep-alive" in connection
        )
        if self.status in (204, 304):
            self.done = True
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._read = self._chunks
        elif (length := self.headers.get("content-length")) is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 20):
                raise ProtocolError(f"content-length {length[:20]!r}")
            self._left, self._read = int(length), self._counted
            self.done = self._left == 0
        else:
            self._read, self.keep_alive = self._until_close, False
        return True

    def _counted(self, out: list[bytes]) -> bool:
        out.append(self.rest[: self._left])
        self._left -= len(out[-1])
        self.rest = self.rest[len(out[-1]) :]
        self.done = self._left == 0
        return False

    def _until_close(self, out: list[bytes]) -> bool:
        out.append(self.rest)
        self.rest = b""
        return False

    def _chunks(self, out: list[bytes]) -> bool:
        """Take as many chunks as are there; a chunk cut by the read is handed out in parts."""
        data, end, at = self.rest, len(self.rest), 0
        left = self._left or 0  # of the open chunk, its closing line break included
        while True:
            if left:
                if left > 2:
                    out.append(data[at : at + left - 2])
                if at + left > end:
                    # Count what was taken; the closing line break is checked when it comes.
                    taken = min(end - at, left - 2) if left > 2 else 0
                    self._left, self.rest = left - taken, data[at + taken :]
                    if self._left <= 2 and not b"\r\n".startswith(self.rest):
                        raise ProtocolError("a chunk does not end where it says")
                    return False
                if data[at + left - 2 : at + left] != b"\r\n":
                    raise ProtocolError("a chunk does not end where it says")
                at += left
            line = data.find(b"\r\n", at)
            if line < 0:
                if end - at > 4096:
                    raise ProtocolError("a chunk without a size")
                self._left, self.rest = 0, data[at:]
                return False
            size = data[at:line]
            if not size.isalnum():  # an extension, blanks, or nonsense that int() would take
                size = size.partition(b";")[0].strip(b" \t")
            try:
                left = int(size, 16) if size.isalnum() else -1
            except ValueError:
                left = -1
            if left < 0:
                raise ProtocolError(f"chunk size {size[:20]!r}")
            if left == 0:
                self.rest, self._left, self._read = data[line + 2 :], 0, self._trailers
                return True
            at, left = line + 2, left + 2

    def _trailers(self, out: list[bytes]) -> bool:
        line, found, rest = self.rest.partition(b"\r\n")
        if found:
            self.rest, self.done = rest, not line
        return bool(found)
