"""Owns the life of a process that the engine starts to serve it: port, signals, orphanhood."""

import asyncio
import os
import signal
import sys
from typing import Final

import grpc.aio

SERVER_OPTIONS: Final = [
    # The engine's own limit for one message; a state may hold whole command outputs.
    ("grpc.max_receive_message_length", 400 * 1024 * 1024),
    ("grpc.max_send_message_length", 400 * 1024 * 1024),
]

PARENT_CHECK_SECONDS: Final = 1.0


async def serve_until_ended(server: grpc.aio.Server) -> None:
    """Start the server, tell the engine its port, and return when the engine is done with it."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    parent = os.getppid()
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), PARENT_CHECK_SECONDS)
        except TimeoutError:
            # An engine that was killed cannot end what it started.
            if os.getppid() != parent:
                stop.set()
