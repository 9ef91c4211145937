"""Eight processes read and write one disk around its caches, and check every sector.

    direct.py make FILE        a disk to begin with: each sector repeats its own number
    direct.py run DISK         the eight; exit status 1 when a sector is wrong
    direct.py expected FILE    makes of the first what the second leaves behind

Each of four writers has a quarter of the disk, remembers what it wrote and reads it back; four readers look everywhere.
A sector holds one 64-bit word 64 times: the number of the sector, and above it how often it was written.
"""

import mmap
import os
import random
import struct
import sys
from multiprocessing import Process

SECTOR = 512
SECTORS = 32768  # 16 MiB
WRITERS = 4
READERS = 4
STEPS = 250
LENGTH_MAX = 96  # sectors of one request


def sector(number, generation):
    return struct.pack("<Q", generation << 32 | number) * (SECTOR // 8)


def plan(writer):
    """What a writer does: write or read, where, how many sectors, and which generation of a write."""
    dice = random.Random(writer)
    share = SECTORS // WRITERS
    for generation in range(1, STEPS + 1):
        count = dice.randrange(1, LENGTH_MAX)
        yield dice.random() < 0.6, writer * share + dice.randrange(share - count), count, generation


class Direct:
    """A disk opened around the caches, and memory that may be transferred so."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.memory = mmap.mmap(-1, LENGTH_MAX * SECTOR)

    def read(self, first, count):
        with memoryview(self.memory)[: count * SECTOR] as view:
            if os.preadv(self.file, [view], first * SECTOR) != count * SECTOR:
                sys.exit(f"short read at sector {first}")
            return bytes(view)

    def write(self, first, data):
        with memoryview(self.memory)[: len(data)] as view:
            view[:] = data
            if os.pwritev(self.file, [view], first * SECTOR) != len(data):
                sys.exit(f"short write at sector {first}")


def write(path, writer):
    disk, latest = Direct(path), {}
    for writes, first, count, generation in plan(writer):
        numbers = range(first, first + count)
        if writes:
            latest.update((n, generation) for n in numbers)
            disk.write(first, b"".join(sector(n, generation) for n in numbers))
            if generation % 32 == 0:
                os.fdatasync(disk.file)
        elif disk.read(first, count) != b"".join(sector(n, latest.get(n, 0)) for n in numbers):
            sys.exit(f"writer {writer}: {count} sectors at {first} are not what was written last")


def read(path, reader):
    disk, dice = Direct(path), random.Random(100 + reader)
    for _ in range(STEPS):
        count = dice.randrange(1, LENGTH_MAX)
        first = dice.randrange(SECTORS - count)
        # A write may be under way; the numbers are the same in what was and what comes.
        numbers = memoryview(disk.read(first, count)).cast("I")[::2].tolist()
        if numbers != [n for n in range(first, first + count) for _ in range(SECTOR // 8)]:
            sys.exit(f"reader {reader}: {count} sectors at {first} belong somewhere else")


def run(path):
    workers = [Process(target=write, args=(path, n)) for n in range(WRITERS)]
    workers += [Process(target=read, args=(path, n)) for n in range(READERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(worker.exitcode for worker in workers)


def make(path):
    with open(path, "wb") as file:
        file.writelines(sector(n, 0) for n in range(SECTORS))


def expected(path):
    with open(path, "r+b") as file:
        for writer in range(WRITERS):
            for writes, first, count, generation in plan(writer):
                if writes:
                    file.seek(first * SECTOR)
                    file.writelines(sector(n, generation) for n in range(first, first + count))


sys.exit({"make": make, "run": run, "expected": expected}[sys.argv[1]](sys.argv[2]))
