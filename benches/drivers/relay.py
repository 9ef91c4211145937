"""Stands between a client and a slow server and notes, on the client's side of the link, each request and answer.

relay.py SERVER_PORT PORT_FILE LOG: a line of the log is the microseconds at which a request came from the client and
at which the last byte of its answer went to it, and the bytes of the answer with its headers.
"""

import asyncio
import os
import sys
import time


def now_us():
    return time.monotonic_ns() // 1000


async def serve(server_port, log, client_in, client_out):
    server_in, server_out = await asyncio.open_connection("127.0.0.1", server_port)
    request = None  # [issued, ended, bytes]

    def note():
        if request and request[2]:
            print(*request, file=log, flush=True)

    async def answers():
        while data := await server_in.read(65536):
            client_out.write(data)
            request[1] = now_us()
            request[2] += len(data)
        client_out.close()

    answering = asyncio.create_task(answers())
    # One request at a time on a connection: with the next one the answer before it is whole.
    while data := await client_in.read(65536):
        note()
        request = [now_us(), 0, 0]
        server_out.write(data)
    note()
    answering.cancel()
    server_out.close()


async def main(server_port, port_file, log_name):
    with open(log_name, "w") as log:
        relay = await asyncio.start_server(lambda i, o: serve(server_port, log, i, o), "127.0.0.1", 0)
        # Whole or not there: whoever waits for it looks at its size.
        with open(port_file + ".new", "w") as out:
            out.write(str(relay.sockets[0].getsockname()[1]))
        os.rename(port_file + ".new", port_file)
        await relay.serve_forever()


asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
