#!/usr/bin/env python3
"""Speaks to a shell on a guest's serial line, for the tests.

    serial.py SOCKET SECONDS COMMAND...   runs a command there and prints what it prints, at most for so long

The socket is that of QEMU. The command's output is put between two marks, which the guest makes so that its echo of the
command does not hold them. Exit status: 0 the command came to its end, 1 it did not in time, 2 no connection.
"""

import socket
import sys
import time


def main(path, seconds, words):
    deadline = time.monotonic() + float(seconds)
    mark = f"{time.monotonic_ns():x}"
    line = socket.socket(socket.AF_UNIX)
    line.connect(path)
    # The quotes part the mark, in the echo alone.
    line.sendall(f'\necho "<<"{mark}; {" ".join(words)}; echo ">>"{mark}\n'.encode())
    begin, end, heard = f"<<{mark}\r\n".encode(), f">>{mark}".encode(), b""
    while end not in heard:
        line.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            more = line.recv(4096)
        except TimeoutError:
            more = b""
        if not more:
            print(heard.decode(errors="replace")[-400:], file=sys.stderr)
            sys.exit(1)
        heard += more
    said = heard.split(end)[0].split(begin)[-1].decode(errors="replace")
    print(said.replace("\r\n", "\n"), end="")


if len(sys.argv) < 4:
    sys.exit(__doc__)
try:
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
except OSError as error:
    print(f"serial.py: {sys.argv[1]}: {error}", file=sys.stderr)
    sys.exit(2)
