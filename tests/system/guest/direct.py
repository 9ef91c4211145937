"""Eight processes read and write a disk at once, past the page cache, and check what they read.

Each works in a region of its own, by a sequence that is the same on every run; so the same program, run over a plain
copy of the disk, leaves the bytes that the disk must have in the end. Offsets and lengths are whole sectors, mostly
not whole blocks, so that blocks which lie in part under a write have to come from the origin first.
"""

import mmap
import os
import random
import sys

SECTOR = 512
WORKERS = 8
REGION = 2 << 20
STRIDE = 7 << 20
OPERATIONS = 120
SECTORS_MAX = 96


def work(path, number):
    dice = random.Random(number)
    # Direct I/O wants aligned memory, which a map is. A plain file of the host may have no direct I/O.
    flags = os.O_RDWR | (os.O_DIRECT if path.startswith("/dev/") else 0)
    disk = os.open(path, flags)
    buffer = mmap.mmap(-1, SECTORS_MAX * SECTOR)
    base = number * STRIDE + 3 * SECTOR
    written = {}
    for step in range(OPERATIONS):
        first = dice.randrange(REGION // SECTOR - SECTORS_MAX)
        count = dice.randrange(1, SECTORS_MAX + 1)
        view = memoryview(buffer)[: count * SECTOR]
        if dice.random() < 0.5:
            for i in range(count):
                sector = b"%d %d %d " % (number, step, first + i)
                sector = (sector * (SECTOR // len(sector) + 1))[:SECTOR]
                view[i * SECTOR : (i + 1) * SECTOR] = sector
                written[first + i] = sector
            if os.pwritev(disk, [view], base + first * SECTOR) != len(view):
                sys.exit(f"worker {number}: a short write at {base + first * SECTOR}")
        else:
            if os.preadv(disk, [view], base + first * SECTOR) != len(view):
                sys.exit(f"worker {number}: a short read at {base + first * SECTOR}")
            for i in range(count):
                expected = written.get(first + i)
                if expected is not None and view[i * SECTOR : (i + 1) * SECTOR] != expected:
                    sys.exit(f"worker {number}: wrong bytes at {base + (first + i) * SECTOR}")
    os.fsync(disk)


children = []
for number in range(WORKERS):
    child = os.fork()
    if child == 0:
        work(sys.argv[1], number)
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
