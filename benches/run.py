"""`make bench`: three nodes on this machine beside those of other libraries, in the same run, in windows that take turns.

    make bench BENCH="[--only 128x1,128x256] [--windows 5] [--secs 1] [--warm 0] [--nodes 3] [--reads] [DRIVER...]"

A driver is one of ours, one of another library, or a folder with a program `node` (README.md). Figures are medians over the windows; in
parentheses the ratios to the first driver in the same rounds: their median, and the middle half of them. CPU time, switches of threads and
flushes of the disk are those of all nodes, per proposal (per read, of reads). A figure alone says little (another disk, another day): read
the ratios.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from cluster import DATA, drivers, syncs_per_second
from turns import Cell, Row, Side, positive, table, take_turns

WORK = [Cell(128, 1), Cell(128, 16), Cell(128, 64), Cell(128, 256), Cell(128, 1024), Cell(16384, 64)]
#: The one that is measured against, if it can be built, and ours.
DEFAULT = ["hraft-wal", "python", "c", "pysyncobj"]


def rows_of(side: Side, cell: Cell, reads: bool) -> list[Row]:
    def proposals(seconds: int, warmup: int) -> str:
        return f"BENCH {cell.payload} {cell.inflight} {seconds} {warmup}"

    def asked(seconds: int, warmup: int) -> str:
        return f"READS {cell.inflight} {seconds} {warmup}"

    rows = [Row(side.name, side, proposals)]
    if reads and side.name == "c":
        rows.append(Row("c, reads on the leader", side, asked))
        rows.append(Row("c, reads on a follower", side, asked, on_follower=True))
    return rows


def standing(drivers: list[tuple[str, Path]], size: int) -> list[Side]:
    sides: list[Side] = []
    try:
        for number, (name, folder) in enumerate(drivers):
            sides.append(Side.start(name, folder, size, DATA / str(number)))
    except BaseException:
        for side in sides:
            side.stop()
        raise
    return sides


def measure(sides: list[Side], cells: list[Cell], args: argparse.Namespace) -> None:
    for cell in cells:
        rows = [row for side in sides for row in rows_of(side, cell, args.reads)]
        # The first window of a cell is not like those that follow.
        take_turns(rows, 1, args.secs, args.warm)
        for row in rows:
            row.clear()
        take_turns(rows, args.windows, args.secs, args.warm)
        print(f"\n{cell.payload} B, {cell.inflight} in flight\n\n{table(rows)}", flush=True)
        doubts = [doubt for row in rows if (doubt := row.doubt())]
        if doubts:
            print("\n" + "\n".join(doubts), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        type=Cell.parse_all,
        default=WORK,
        metavar="CELLS",
        help="for instance 128x1,128x64: bytes x in flight",
    )
    parser.add_argument("--windows", type=positive, default=5, help="of each driver and cell")
    parser.add_argument("--secs", type=positive, default=1, help="of a window")
    parser.add_argument("--warm", type=int, default=0, help="seconds before each window")
    parser.add_argument("--nodes", type=positive, default=3, help="of each cluster: 1, 3, 5 or 7")
    parser.add_argument(
        "--reads", action="store_true", help="linearizable reads as well, on leader and follower (driver c)"
    )
    parser.add_argument("drivers", nargs="*", metavar="DRIVER", help=f"by default: {' '.join(DEFAULT)}")
    args = parser.parse_args()
    if args.reads and "c" not in (args.drivers or DEFAULT):
        parser.error("reads are measured with the driver c: name it")
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    try:
        print(f"this disk: {syncs_per_second(DATA, 2.0):.0f} appends of 4 KiB made durable a second", flush=True)
        sides = standing(drivers(args.drivers, DEFAULT), args.nodes)
        try:
            measure(sides, args.only, args)
            # A cluster that left a node behind looks fast.
            behind = [side.name for side in sides if not side.converged()]
        finally:
            for side in sides:
                side.stop()
    finally:
        shutil.rmtree(DATA, ignore_errors=True)
    if behind:
        raise SystemExit(
            f"bench: the nodes of {', '.join(behind)} do not hold the same state: their figures do not count"
        )
    print("\nthe nodes of each hold the same state")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
