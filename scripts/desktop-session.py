#!/usr/bin/env python3
"""Works in the spreadsheet of the desktop guest (build-desktop.sh) as a user would, and checks what it answers.

    desktop-session.py --qmp SOCKET --serial FILE [--variant N] [--short] [--picture FILE.png] [--json FILE]
                       [--limit SECONDS]
    desktop-session.py --qmp SOCKET --rest
    desktop-session.py --waits FILE.vmtrace --json FILE

Pointer and keys go in over QMP, one at a time, and the next one only when the screen has answered the last: so no key
is lost however slowly the guest moves, and the time from a key to its answer is what a user would wait. The session
overwrites a number, adds a row of formulas below the table, saves, copies the whole table and presses F12, on which the
guest prints the copied cells, as Gnumeric calculated them, and the formulas in the saved file on its serial line. Both
are compared with what is computed here.

--variant N (default 0) chooses number, cell and function: another user, another session. --short leaves out all formulas
but one: the same checks in a third of the time. Waiting for the machine to run, and for each answer, is limited to
--limit seconds (default 120).

--rest only waits until the screen has been still for some seconds: time for a restore point.

Prints one line; with --json also each key's time.

--waits goes with no machine: it reads how the guest waited for its image ('vmstream trace' of what the run recorded) and
adds to the JSON file of the same session, for each key and for all after the first answer, how long the guest stood still
for want of bytes. What a key took beyond that is the emulator's time, or the host's.

Exit status: 0 all answers right, 1 a wrong one or none in time, 2 no machine.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time

# The sheet of the desktop, scripts/desktop/home/user/budget.csv; the first row and column are names.
SHEET = [
    ["Item", "January", "February", "March"],
    ["Rent", 640, 640, 640],
    ["Food", 212, 198, 231],
    ["Heating", 95, 102, 71],
    ["Books", 38, 17, 44],
    ["Trains", 60, 85, 60],
    ["Telephone", 25, 25, 25],
]
FUNCTIONS = {"sum": sum, "max": max, "min": min, "count": len}

# So long a picture must stay the same to count as the answer to a key: longer than Gnumeric takes between the parts
# of a redraw; and what never comes to rest, like the moving frame around copied cells, is waited for so long.
CALM_S = 0.15
RESTLESS_S = 1.0
# Between two looks at the screen. A look copies 2 MiB in the emulator.
LOOK_S = 0.04
# A program that still starts up changes the screen within so long, also on a busy host.
STARTED_S = 5.0

CODES = {"=": "equal", "*": "shift-8", "(": "shift-9", ")": "shift-0", ":": "shift-semicolon", "\n": "ret", "\t": "tab"}


class Failed(Exception):
    """The guest did not answer, or wrongly."""


def connected(path, limit):
    """A connection to QEMU; its socket has a name before it takes connections."""
    deadline = time.monotonic() + limit
    while True:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(limit)
        try:
            peer.connect(path)
            return peer
        except OSError:
            peer.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_S)


class Machine:
    """A running QEMU: its keyboard and its screen."""

    def __init__(self, path, serial, limit):
        self.peer = connected(path, limit)
        self.lines = self.peer.makefile("rw", encoding="utf-8")
        self.lines.readline()
        self.ask("qmp_capabilities")
        self.limit = limit
        self.serial = serial
        # QEMU writes pictures to files only.
        self.directory = tempfile.TemporaryDirectory()
        self.file = os.path.join(self.directory.name, "screen.ppm")
        self.times = []
        self.first_answer = None
        # Of the clock that recordings are dated by.
        self.wall = time.time() - time.monotonic()

    def ask(self, command, **arguments):
        print(json.dumps({"execute": command, "arguments": arguments}), file=self.lines, flush=True)
        while line := self.lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise Failed(f"the machine went away during {command}")

    def wait_until_running(self):
        """A machine that is being restored has a screen before it has a guest."""
        deadline = time.monotonic() + self.limit
        while not self.ask("query-status")["running"]:
            if time.monotonic() > deadline:
                raise Failed(f"the machine does not run after {self.limit} s")
            time.sleep(LOOK_S)

    def screen(self):
        self.ask("screendump", filename=self.file)
        with open(self.file, "rb") as picture:
            return picture.read()

    def settled(self, before):
        """Waits until the screen differs from `before`, then for it to come to rest; answers when it first differed."""
        deadline = time.monotonic() + self.limit
        while (now := self.screen()) == before:
            if time.monotonic() > deadline:
                raise Failed(f"the screen shows nothing new after {self.limit} s")
            time.sleep(LOOK_S)
        answered = since = time.monotonic()
        last = now
        while time.monotonic() < since + CALM_S and time.monotonic() < answered + RESTLESS_S:
            time.sleep(LOOK_S)
            if (now := self.screen()) != last:
                last, since = now, time.monotonic()
        return answered

    def press(self, code):
        keys = [{"type": "qcode", "data": key} for key in code.split("-")]
        self.ask("send-key", keys=keys, **{"hold-time": 10})

    def wait_until_still(self):
        deadline = time.monotonic() + self.limit
        last, since = self.screen(), time.monotonic()
        while time.monotonic() < since + STARTED_S:
            if time.monotonic() > deadline:
                raise Failed(f"the screen never stands still within {self.limit} s")
            time.sleep(LOOK_S)
            if (now := self.screen()) != last:
                last, since = now, time.monotonic()

    def timed(self, name, start, answered):
        if not self.times:
            self.first_answer = time.time()
        self.times.append((name, self.wall + start, answered - start))

    def point(self, x, y):
        """Moves the pointer to a place of the screen, both from 0 to 1."""
        before = self.screen()
        start = time.monotonic()
        axes = [{"type": "abs", "data": {"axis": axis, "value": int(at * 32767)}} for axis, at in (("x", x), ("y", y))]
        self.ask("input-send-event", events=axes)
        self.timed("pointer", start, self.settled(before))

    def key(self, code):
        before = self.screen()
        start = time.monotonic()
        self.press(code)
        self.timed(code, start, self.settled(before))

    def type(self, text):
        for character in text:
            code = CODES.get(character)
            self.key(code or ("shift-" + character.lower() if character.isupper() else character))

    def answer(self, code):
        """Presses a key that is answered on the serial line; answers the lines."""
        with open(self.serial, "rb") as serial:
            serial.seek(0, os.SEEK_END)
            start = time.monotonic()
            self.press(code)
            text = b""
            while b"@@ answered" not in text:
                if time.monotonic() > start + self.limit:
                    raise Failed(f"no answer on the serial line after {self.limit} s, only {text!r}")
                time.sleep(LOOK_S)
                text += serial.read()
        self.timed(code, start, time.monotonic())
        return [line.strip() for line in text.decode(errors="replace").splitlines()]


def work(machine, variant, short):
    """The session; raises Failed unless everything it gets to see is right."""
    sheet = [list(row) for row in SHEET]
    name = list(FUNCTIONS)[variant % len(FUNCTIONS)]
    row, number = 1 + variant % (2 if short else 6), 100 + 37 * variant % 900
    # To the title of the window: the keyboard belongs to what is under the pointer, and over the sheet that might be a
    # hint that Gnumeric shows beside the cell. That it moves is the first sign of life.
    machine.point(0.45, 0.063)
    machine.key("down")
    machine.key("right")
    for _ in range(row - 1):
        machine.key("down")
    machine.type(f"{number}\n")
    sheet[row][1] = number
    results = [FUNCTIONS[name]([line[column] for line in sheet[1:7]]) for column in (1, 2, 3)]
    if short:
        # The cell below the last of the column that the number is in.
        for code in ["ctrl-down", "down"]:
            machine.key(code)
        formulas = [f"={name}(B2:B7)"]
        machine.type(formulas[0].lower() + "\n")
        sheet.append(["", results[0], "", ""])
    else:
        for code in ["ctrl-home", "ctrl-down", "down"]:
            machine.key(code)
        machine.type("Result\t")
        formulas = [f"={name}({column}2:{column}7)" for column in "BCD"]
        for formula in formulas:
            machine.type(formula.lower() + "\t")
        formulas.append(f"={variant + 6}*7")
        machine.type(formulas[-1] + "\n")
        # The product stands alone in column E.
        sheet = [line + [""] for line in sheet] + [["Result"] + results + [(variant + 6) * 7]]
    machine.key("ctrl-s")
    machine.key("ctrl-home")
    machine.key("ctrl-shift-end")
    machine.key("ctrl-c")
    lines = machine.answer("f12")
    machine.key("esc")

    # Rows are compared as long as they should be: one whose last cells are empty may be printed without them.
    got = [line.removeprefix("@@ row").removeprefix(" ").split("\t") for line in lines if line.startswith("@@ row")]
    expected = [[str(cell) for cell in line] for line in sheet]
    got = [line + [""] * (len(sheet[0]) - len(line)) for line in got]
    if got != expected:
        raise Failed(f"wrong cells:\n  expected {expected}\n  got      {got}")
    formulas = [formula.lower() for formula in formulas]
    saved = [line.split()[-1].lower() for line in lines if line.startswith("@@ formula ")]
    if saved != formulas:
        raise Failed(f"wrong formulas in the saved file: expected {formulas}, got {saved}")


def read_waits(path):
    """When and how long the guest waited for its image: intervals of the wall clock that do not overlap, in order."""
    began, waits = None, []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            words = line.split()
            if began is None:
                began = next(int(word.removeprefix("started=")) for word in words if word.startswith("started=")) / 1e6
            elif words and words[0] != "#" and words[-1].startswith("wait="):
                start = began + int(words[0]) / 1e6
                end = start + int(words[-1].removeprefix("wait=")) / 1e6
                if waits and start <= waits[-1][1]:
                    waits[-1][1] = max(waits[-1][1], end)
                else:
                    waits.append([start, end])
    return waits


def add_waits(figures, waits):
    """Adds to a session how long its guest stood still for want of bytes."""

    def within(start, end):
        parts = [min(end, to) - max(start, at) for at, to in waits if at < end and to > start]
        return sum(parts), max(parts, default=0.0)

    for key in figures["keys"]:
        total, longest = within(key["at"], key["at"] + key["s"])
        key["waited_s"], key["longest_wait_s"] = round(total, 3), round(longest, 3)
    first, end = figures["answered_at"], figures["started_at"] + figures["total_s"]
    if first is not None:
        figures["waited_before_s"] = within(0, first)[0]
        figures["waited_after_s"], figures["longest_wait_after_s"] = within(first, end)
        figures["most_waited_s"] = max((key["waited_s"] for key in figures["keys"][1:]), default=0.0)


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--qmp")
    parser.add_argument("--waits")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--serial")
    parser.add_argument("--rest", action="store_true")
    parser.add_argument("--variant", type=int, default=0)
    parser.add_argument("--picture")
    parser.add_argument("--json")
    parser.add_argument("--limit", type=float, default=120)
    try:
        options = parser.parse_args()
    except SystemExit:
        print(__doc__, file=sys.stderr)
        return 2
    right = options.json and not options.qmp if options.waits else options.qmp and options.rest == (not options.serial)
    if not right:
        print(__doc__, file=sys.stderr)
        return 2
    if options.waits:
        with open(options.json, encoding="utf-8") as file:
            figures = json.load(file)
        add_waits(figures, read_waits(options.waits))
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
        return 0
    try:
        machine = Machine(options.qmp, options.serial, options.limit)
    except OSError as error:
        print(f"desktop-session.py: no machine at {options.qmp}: {error}", file=sys.stderr)
        return 2
    start = time.time()
    problem = None
    try:
        machine.wait_until_running()
        if options.rest:
            machine.wait_until_still()
        else:
            work(machine, options.variant, options.short)
    except (Failed, OSError) as error:
        problem = str(error)
    if options.picture:
        machine.ask("screendump", filename=os.path.abspath(options.picture), format="png")
    times = [seconds for _, _, seconds in machine.times]
    figures = {
        "right": problem is None,
        "started_at": start,
        "answered_at": machine.first_answer,
        "first_s": times[0] if times else None,
        "longest_s": max(times[1:], default=None),
        "total_s": time.time() - start,
        "keys": [{"key": key, "at": round(at, 6), "s": round(seconds, 3)} for key, at, seconds in machine.times],
    }
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
    if problem:
        where = "" if options.rest else f" variant {options.variant}, key {len(times)}:"
        print(f"desktop-session.py:{where} {problem}", file=sys.stderr)
        return 1
    if options.rest:
        return 0
    print(
        f"variant {options.variant}: all cells right; {len(times)} keys in {figures['total_s']:.1f} s, "
        f"first answer after {times[0]:.2f} s, slowest later one {figures['longest_s']:.2f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
