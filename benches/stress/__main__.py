"""`make bench-stress`: figures beside their goals.

make bench-stress BENCH="[--full] [half_load] [failover] [catching_up] [starting] [idle] [many]"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from cluster import OUT

from . import catching_up, failover, half_load, idle, many, starting
from .report import Report

SCENARIOS: dict[str, Callable[[Report, bool], None]] = {
    "half_load": half_load.run,
    "failover": failover.run,
    "catching_up": catching_up.run,
    "starting": starting.run,
    "idle": idle.run,
    "many": many.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="as long and as large as the goals say; else a quick form")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"some of {', '.join(SCENARIOS)}")
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(SCENARIOS):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    report = Report(OUT / "stress.jsonl")
    for name in args.scenarios or SCENARIOS:
        SCENARIOS[name](report, not args.full)
    return 0


if __name__ == "__main__":
    sys.exit(main())
