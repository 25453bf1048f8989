"""Lets a fenced process read the files of one mirror, and nothing else, without credentials and without a network.

The process that starts it keeps the credentials and fetches the bytes; the fenced one asks over sockets, one for each of
its threads: the path, from where and how many bytes. What is not a file of that mirror is refused here, outside.
"""

import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

_QUESTION = struct.Struct("!QQI")
_ANSWER = struct.Struct("!?Q")
_LINES = 8
_LONGEST_PATH = 2**16
_MOST = 2**30
"""Bytes of one answer; a row group has at most 64 MB before it is encoded."""
Read = Callable[[str, int, int], bytes]


class Broker:
    """Answers a fenced process. `ends` are to be passed on to it; call `started` when it has them."""

    def __init__(self, read: Read) -> None:
        self._read = read
        pairs = [socket.socketpair() for _ in range(min(_LINES, (os.cpu_count() or 1) + 1))]
        self._own = [own for own, _ in pairs]
        self._others = [other for _, other in pairs]
        self.ends = [other.fileno() for other in self._others]

    def started(self) -> None:
        """Begin to answer; the fenced process has its ends of the lines now."""
        for other in self._others:
            other.close()
        for own in self._own:
            threading.Thread(target=self._answer, args=(own,), daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        for one in (*self._own, *self._others):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _answer(self, line: socket.socket) -> None:
        with suppress(OSError, EOFError):
            while True:
                start, size, length = _QUESTION.unpack(_receive(line, _QUESTION.size))
                if length > _LONGEST_PATH or size > _MOST:
                    return
                path = _receive(line, length).decode("utf-8", "surrogateescape")
                try:
                    done, data = True, self._read(path, start, size)
                except Exception as error:  # Whatever it is, the fenced process is waiting for an answer.
                    done, data = False, str(error).encode("utf-8", "replace")
                line.sendall(_ANSWER.pack(done, len(data)))
                line.sendall(data)


def reader(ends: Sequence[int]) -> Read:
    """Return, in the fenced process, what asks for the bytes of a file: thread-safe, a question a line at a time."""
    lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for end in ends:
        lines.put(socket.socket(fileno=end))

    def read(path: str, start: int, size: int) -> bytes:
        name = path.encode("utf-8", "surrogateescape")
        line = lines.get()
        try:
            line.sendall(_QUESTION.pack(start, size, len(name)) + name)
            done, length = _ANSWER.unpack(_receive(line, _ANSWER.size))
            data = _receive(line, length)
        finally:
            lines.put(line)
        if not done:
            raise OSError(data.decode("utf-8", "replace"))
        return data

    return read


def _receive(line: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = line.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(data)
