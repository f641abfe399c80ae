"""A bench node of PySyncObj, which has a thread of its own and answers by callbacks: the next proposal is made where the last one is answered.

With its journal, which it never syncs: a machine that loses power may lose what was acknowledged.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from load import DRAIN, Map, Window, say
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated


class Node(SyncObj):  # type: ignore[misc]
    def __init__(self, own: str, others: list[str], directory: str) -> None:
        # Without batches it is fastest in this: with them, proposals wait for its next tick.
        journal = str(Path(directory) / "journal")
        conf = SyncObjConf(journalFile=journal, connectionRetryTime=0.5, appendEntriesUseBatch=False)
        super().__init__(own, others, conf=conf)
        self.map = Map()

    @replicated  # type: ignore[untyped-decorator]
    def put(self, command: bytes) -> None:
        self.map.put(command)

    def leader_address(self) -> str:
        leader = self._getLeader()
        return str(getattr(leader, "address", leader or ""))


class Run(Window):
    """One workload: warm-up, window, drain."""

    def __init__(self, node: Node, payload: int) -> None:
        super().__init__(payload)
        self._node = node
        #: Proposals without an answer; the library's thread counts them down once the run is over.
        self._open = 0
        self._drained = threading.Event()

    def _propose(self) -> None:
        begun = time.perf_counter()
        self._node.put(next(self._commands), callback=lambda _, error: self._answered(begun, error))

    def _answered(self, begun: float, error: int) -> None:
        if error != FAIL_REASON.SUCCESS:
            self._errors += self._measuring
            self._sample = f"reason {error}"
        elif self._measuring:
            self._latencies.append(time.perf_counter() - begun)
        if not self._over:
            if error == FAIL_REASON.SUCCESS:
                self._propose()
            else:
                # A refusal comes at once, from within the call: without a pause this would not end.
                threading.Timer(0.002, self._propose).start()
            return
        self._open -= 1
        if self._open == 0:
            self._drained.set()

    def measure(self, inflight: int, seconds: float, warmup: float) -> dict[str, object]:
        self._open = inflight
        for _ in range(inflight):
            self._propose()
        time.sleep(warmup)
        self._begin()
        time.sleep(seconds)
        self._end()
        return self._result(self._drained.wait(DRAIN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--peers", required=True, help="1=host:port,2=host:port,…")
    parser.add_argument("--dir", required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    addresses = {int(number): addr for number, _, addr in (peer.partition("=") for peer in args.peers.split(","))}
    ids = {addr: number for number, addr in addresses.items()}
    own = addresses.pop(args.id)
    node = Node(own, list(addresses.values()), args.dir)

    def leader() -> int:
        return ids.get(node.leader_address(), 0)

    while leader() == 0:
        time.sleep(0.02)
    say(f"READY {leader()}")
    for line in sys.stdin:
        word, *arguments = line.split() or [""]
        if word == "QUIT":
            break
        if word == "STATE":
            say(json.dumps(node.map.state()))
        elif word == "BENCH":
            if leader() != args.id:
                say(json.dumps({"error": "not leader", "leader": leader()}))
                continue
            payload, inflight, seconds, warmup = map(int, arguments)
            say(json.dumps(Run(node, payload).measure(inflight, seconds, warmup)))
    # Its thread does not end by itself.
    os._exit(0)


main()
