#!/usr/bin/env python3
"""Speaks QMP, for the tests of QEMU.

    qmp.py SOCKET COMMAND [ARGUMENTS]   runs one command, its arguments as JSON; prints what it returns as JSON
    qmp.py SOCKET events                prints events, a line of JSON each, until the other side has gone

Exit status: 0 done, 1 the command failed (the reason is on standard error), 2 no answer.
"""

import json
import socket
import sys

# Nothing that the tests ask for takes longer than a drain that waits for requests to be given up.
ANSWER_S = 60


def main(path, command, arguments=None):
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(ANSWER_S)
    peer.connect(path)
    lines = peer.makefile("rw", encoding="utf-8")

    def ask(request):
        print(json.dumps(request), file=lines, flush=True)
        while line := lines.readline():
            answer = json.loads(line)
            if "event" not in answer:
                return answer
        sys.exit(f"qmp.py: {path} closed the connection without an answer")

    lines.readline()  # the greeting
    ask({"execute": "qmp_capabilities"})
    if command == "events":
        peer.settimeout(None)
        for line in lines:
            print(line, end="", flush=True)
        return 0
    request = {"execute": command}
    if arguments:
        request["arguments"] = json.loads(arguments)
    answer = ask(request)
    if "error" in answer:
        print(answer["error"]["desc"], file=sys.stderr)
        return 1
    print(json.dumps(answer["return"]))
    return 0


if len(sys.argv) not in (3, 4):
    sys.exit(__doc__)
try:
    sys.exit(main(*sys.argv[1:]))
except OSError as error:
    print(f"qmp.py: {sys.argv[1]}: {error}", file=sys.stderr)
    sys.exit(2)
