#!/usr/bin/env python3
"""A proxy that moves in rounds: rounds.py ORIGIN_PORT PORT_FILE LOG ROUNDS [QUIET_S].

It holds every request back until nobody has sent one for QUIET_S seconds (1). Then the round is over: all that are held are
answered in the order in which they came, as a link of one queue would, those on new connections last: theirs would still
have to be made. So two requests are in one round if and only
if neither had to wait for the other's answer, and the number of rounds is the number of round trips on any link, however
slow this machine is. After ROUNDS rounds nothing is answered any more.

LOG gets a line for each answer: round, connection, whether it was that connection's first request, bytes of request and
answer with their headers, path, range.
"""
import os
import re
import socket
import sys
import threading
import time

ORIGIN, PORT_FILE, LOG, ROUNDS = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
QUIET_S = float(sys.argv[5]) if len(sys.argv) > 5 else 1.0

lock = threading.Condition()
held = []  # (connection, first, request), in order of arrival
last = time.monotonic()


def head_of(stream):
    """The next head on a stream, without its end; None at the end of the stream."""
    lines = []
    while line := stream.readline():
        if line in (b"\r\n", b"\n"):
            return b"".join(lines) + b"\r\n"
        lines.append(line)
    return None


def serve(connection, client):
    """Reads the requests of a connection; each waits for its round."""
    global last
    requests, first = client.makefile("rb"), True
    try:
        while request := head_of(requests):
            with lock:
                held.append((connection, client, first, request))
                last = time.monotonic()
                lock.notify_all()
            first = False
    except OSError:
        pass  # the client went away


def answer(request):
    """What the origin says, head and body."""
    with socket.create_connection(("127.0.0.1", ORIGIN)) as origin:
        origin.sendall(request)
        stream = origin.makefile("rb")
        head = head_of(stream)
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        return head + stream.read(int(length[1]) if length else 0)


def rounds():
    number = 0
    with open(LOG, "w", buffering=1) as log:
        while number < ROUNDS:
            with lock:
                lock.wait_for(lambda: held)
                while (left := last + QUIET_S - time.monotonic()) > 0:
                    lock.wait(left)
                now, held[:] = sorted(held, key=lambda one: one[2]), []
            number += 1
            # All are asked before any is answered, so that nobody's next request slips into this round.
            for (connection, client, first, request), reply in [(one, answer(one[3])) for one in now]:
                path = request.split(b" ", 2)[1].decode()
                span = re.search(rb"(?im)^range: *bytes=([0-9-]+)", request)
                new = "new" if first else "warm"
                span = span[1].decode() if span else "-"
                print(number, connection, new, len(request), len(reply), path, span, file=log)
                try:
                    client.sendall(reply)
                except OSError:
                    pass


listener = socket.create_server(("127.0.0.1", 0))
with open(PORT_FILE + ".new", "w") as file:
    print(listener.getsockname()[1], file=file)
os.replace(PORT_FILE + ".new", PORT_FILE)
threading.Thread(target=rounds, daemon=True).start()
connections = 0
while True:
    accepted = listener.accept()[0]
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connections += 1
    threading.Thread(target=serve, args=(connections, accepted), daemon=True).start()
