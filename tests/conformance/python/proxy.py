"""A TCP proxy on loopback whose connections a test can cut."""

from __future__ import annotations

import asyncio
import socket
import struct


class Proxy:
    def __init__(self, target: str) -> None:
        self._host, port = target.rsplit(":", 1)
        self._port = int(port)
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = "127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.cut()

    @property
    def connections(self) -> int:
        return len(self._open) // 2

    async def cut(self) -> None:
        """Resets every connection, on both sides; they are gone when this returns."""
        ends = list(self._open)
        self._open.clear()
        for end in ends:
            linger = struct.pack("ii", 1, 0)  # close with RST
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            end.transport.abort()
        # Aborted transports close their sockets in the loop's next turn.
        await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, up_writer}
        try:
            await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
        finally:
            for end in (writer, up_writer):
                self._open.discard(end)
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one side was cut; the other is closed by the caller
    finally:
        writer.close()
