#!/usr/bin/env python3
"""A client of the little server in demo-hold.sh: asks for pages over its serial line, and notes how long it waited.

    hold-client.py --line SOCKET --sums FILE --seconds S --variant N [--limit S] [--log FILE]
                   [--samples FILE --status FILE] [--complete-at-end COMMAND...]

The line is QEMU's socket; --sums has a line "PAGE SHA256" for each page of the server, the page that is asked for most
first: the one in the n-th line is asked for with a weight of 1/n. VARIANT is the seed of the draw. Two questions a second
are asked; the next one when the last was answered, and none may take longer than the limit (300 s). With --log nothing is asked before that file of 'vmstream run' says
that the guest goes on, and the client stays until the image is complete, then runs the command that ends the origin, and asks on
for S seconds more. --samples is written as 'vmstream inspect --run' reads it: a status a second as it stands in
the file of --json-status, and what happened. A wrong answer ends it with status 1.
"""

import argparse
import json
import random
import socket
import subprocess
import sys
import time

# Time from an answer to the next question, in seconds.
PAUSE_S = 0.5
# Longest that anything else may take, in seconds: the hold, and what is left of the image.
HOLD_MAX_S = 1500


class Samples:
    """The file that is drawn, and the status that goes into it."""

    def __init__(self, path, status):
        self.file = open(path, "w", encoding="utf-8") if path else None
        self.status, self.began, self.sampled = status, time.monotonic(), float("-inf")
        self.complete = False

    def write(self, **fields):
        if self.file:
            at_s = fields.pop("at_s", time.monotonic() - self.began)
            print(json.dumps({"at_s": round(at_s, 3), **fields}), file=self.file, flush=True)

    def sample(self):
        """A status, if the last one is a second old."""
        if not self.status or time.monotonic() < self.sampled + 1:
            return
        self.sampled = time.monotonic()
        try:
            with open(self.status, encoding="utf-8") as file:
                said = json.load(file)
        except (OSError, ValueError):
            return  # not there yet
        if "resident_bytes" in said:
            self.complete = said["complete"]
            self.write(status=said)


def ask(line, page, deadline, samples):
    """The server's answer to a question: the page's sum."""
    line.sendall(f"{page}\n".encode())
    heard = b""
    while True:
        for said in heard.split(b"\n")[:-1]:
            words = said.decode(errors="replace").split()
            # Whatever else a console says, as the kernel might, is no answer.
            if len(words) == 3 and words[:2] == ["=", page]:
                return words[2]
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer to {page}; heard {heard[-200:]!r}")
        try:
            more = line.recv(4096)
            if not more:
                raise ConnectionError("the machine has gone")
            heard += more
        except TimeoutError:
            samples.sample()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--line", required=True)
    parser.add_argument("--sums", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--variant", type=int, required=True)
    parser.add_argument("--limit", type=float, default=300)
    parser.add_argument("--log")
    parser.add_argument("--samples")
    parser.add_argument("--status")
    parser.add_argument("--complete-at-end", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    with open(args.sums, encoding="utf-8") as file:
        pages = [line.split() for line in file]
    draw = random.Random(args.variant)
    samples = Samples(args.samples, args.status)
    line = socket.socket(socket.AF_UNIX)
    line.connect(args.line)
    line.settimeout(0.2)
    while args.log:
        samples.sample()
        with open(args.log, encoding="utf-8", errors="replace") as file:
            if "goes on" in file.read():
                break
        if time.monotonic() > samples.began + HOLD_MAX_S:
            raise TimeoutError("the guest did not go on")
        time.sleep(0.05)
    samples.write(event="online")
    started, until, ended = time.monotonic(), None, args.complete_at_end is None
    waits = []
    while until is None or time.monotonic() < until:
        if until is None and (ended or samples.complete):
            if not ended:
                subprocess.run(args.complete_at_end, check=True)
                samples.write(event="origin stopped")
            until = time.monotonic() + args.seconds
        page, expected = draw.choices(pages, [1 / (rank + 1) for rank in range(len(pages))])[0]
        asked = time.monotonic()
        got = ask(line, page, asked + args.limit, samples)
        waits.append(time.monotonic() - asked)
        samples.write(at_s=asked - samples.began, answer_s=round(waits[-1], 4))
        if got != expected:
            sys.exit(f"hold-client.py: {page} is {got}, and should be {expected}")
        if time.monotonic() > started + HOLD_MAX_S:
            raise TimeoutError("the image was not complete in time")
        pause = time.monotonic() + PAUSE_S
        while time.monotonic() < pause:
            samples.sample()
            time.sleep(0.05)
    print(json.dumps({"online_s": round(started - samples.began, 1), "first_s": round(waits[0], 3), "answers": len(waits),
                      "longest_s": round(max(waits), 3), "over_1s": sum(wait > 1 for wait in waits)}))


try:
    main()
except (OSError, TimeoutError, subprocess.SubprocessError) as error:
    print(f"hold-client.py: {error}", file=sys.stderr)
    sys.exit(1)
