"""Drives another DHT as holdfast's own bench drives holdfast: single sets and gets, then many in
flight; every value got is compared. It prints one JSON object and knows no DHT: each peer's file
brings a class with

    name, version, settings   strings
    await start(nodes)        nodes that know each other, on loopback, in this process
    await set(node, n)        stores value(n); returns seconds, or raises
    await get(node, n)        returns (seconds, value or None), or raises
    await before_gets()       called after sets, before gets
    is_local(node, n)         whether that node holds the value itself
"""

import argparse
import asyncio
import hashlib
import json
import random
import sys
import time

NODES = 16
VALUE_BYTES = 48
IN_FLIGHT = 64
IN_FLIGHT_MANY = 1000
IDLE_MAX = 1000
# An operation without an answer after this time is lost.
PATIENCE_S = 10


def value(n):
    """The n-th value: 48 bytes, like no other."""
    return n.to_bytes(8, "big") + hashlib.sha512(n.to_bytes(8, "big")).digest()[:VALUE_BYTES - 8]


def lo_bytes():
    """Bytes that have gone over the loopback interface, IP headers included."""
    with open("/proc/self/net/dev") as lines:
        for line in lines:
            if line.strip().startswith("lo:"):
                return int(line.split(":")[1].split()[0])
    raise RuntimeError("this network namespace has no interface lo")


def quantiles(seconds):
    """{p50, p99, n} in microseconds."""
    times = sorted(seconds)
    if not times:
        return {"p50": None, "p99": None, "n": 0}
    at = lambda q: round(1e6 * times[min(len(times) - 1, int(q * len(times)))])
    return {"p50": at(0.5), "p99": at(0.99), "n": len(times)}


class Phase:
    """What became of the operations of one phase."""

    def __init__(self):
        self.asked = self.done = self.in_time = self.wrong = 0
        self.faults = {}
        self.seconds = []

    def fault(self, error):
        name = type(error).__name__
        self.faults[name] = self.faults.get(name, 0) + 1

    def lost(self):
        return self.asked - self.done


class Bench:
    def __init__(self, peer, seconds):
        self.peer, self.phase_s = peer, seconds
        self.random = random.Random(1)
        self.next = 0
        self.stored = []

    async def set_one(self, phase):
        n, node = self.next, self.next % NODES
        self.next += 1
        phase.asked += 1
        try:
            phase.seconds.append(await asyncio.wait_for(self.peer.set(node, n), PATIENCE_S))
            phase.done += 1
            self.stored.append(n)
        except Exception as error:  # whatever a peer raises is a lost operation
            phase.fault(error)

    async def get_one(self, phase):
        n, node = self.remote()
        phase.asked += 1
        try:
            seconds, got = await asyncio.wait_for(self.peer.get(node, n), PATIENCE_S)
        except Exception as error:
            phase.fault(error)
            return
        if got is None:
            phase.fault(KeyError())
            return
        phase.wrong += got != value(n)
        phase.done += 1
        phase.seconds.append(seconds)

    def remote(self):
        """A value, and a node that neither stored it for us nor holds it."""
        for _ in range(1000):
            n = self.random.choice(self.stored)
            node = self.random.randrange(NODES)
            if node != n % NODES and not self.peer.is_local(node, n):
                return n, node
        raise RuntimeError("every node holds every value")

    async def one_at_a_time(self, one):
        phase, start = Phase(), time.monotonic()
        while phase.asked < IDLE_MAX and time.monotonic() - start < self.phase_s:
            await one(phase)
        return phase

    async def many(self, one, in_flight):
        """A fixed number in flight for the phase's time; then what is left may end."""
        phase, start = Phase(), time.monotonic()
        cpu, wire = time.process_time(), lo_bytes()

        async def worker():
            while time.monotonic() - start < self.phase_s:
                await one(phase)

        workers = [asyncio.ensure_future(worker()) for _ in range(in_flight)]
        await asyncio.sleep(self.phase_s)
        phase.in_time, elapsed = phase.done, time.monotonic() - start
        await asyncio.gather(*workers)
        done = max(phase.done, 1)
        return phase, {
            "in_flight": in_flight,
            "per_s": round(phase.in_time / elapsed, 1),
            "asked": phase.asked,
            "lost": phase.lost(),
            "wrong": phase.wrong,
            "faults": phase.faults,
            "latency_us": quantiles(phase.seconds),
            "cpu_us": round((time.process_time() - cpu) * 1e6 / done, 1),
            "wire_bytes": round((lo_bytes() - wire) / done),
        }

    async def run(self):
        await self.peer.start(NODES)
        idle_sets = await self.one_at_a_time(self.set_one)
        await self.peer.before_gets()
        idle_gets = await self.one_at_a_time(self.get_one)
        _, sets = await self.many(self.set_one, IN_FLIGHT)
        await self.peer.before_gets()
        _, gets = await self.many(self.get_one, IN_FLIGHT)
        report(self.peer, idle_sets, idle_gets, sets, [gets])
        # The peer may break here: what was measured so far is printed already.
        _, many = await self.many(self.get_one, IN_FLIGHT_MANY)
        report(self.peer, idle_sets, idle_gets, sets, [gets, many])


def report(peer, idle_sets, idle_gets, sets, gets):
    """One line; the last one counts."""
    best = max(gets, key=lambda phase: phase["per_s"])
    many = gets[1] if len(gets) > 1 else None
    print(json.dumps({
        "version": peer.version,
        "settings": peer.settings,
        "nodes": NODES,
        "value_bytes": VALUE_BYTES,
        "sets_per_s": sets["per_s"],
        "lookups_per_s": best["per_s"],
        "idle_get_us": quantiles(idle_gets.seconds),
        "idle_set_us": quantiles(idle_sets.seconds),
        "idle_lost": idle_gets.lost() + idle_sets.lost(),
        "in_flight": IN_FLIGHT_MANY,
        "lost": many and many["lost"],
        "lost_share": many and round(many["lost"] / max(many["asked"], 1), 4),
        # The driver is Python in the same process, and contained.
        "cpu_us_per_set": sets["cpu_us"],
        "cpu_us_per_lookup": best["cpu_us"],
        "wire_bytes_per_set": sets["wire_bytes"],
        "wire_bytes_per_lookup": best["wire_bytes"],
        "wrong": sum(phase["wrong"] for phase in gets) + idle_gets.wrong,
        "phases": {"sets": sets, "gets": gets},
    }), flush=True)


def main(peer):
    parser = argparse.ArgumentParser(description=f"measures {peer.name}")
    parser.add_argument("--seconds", type=float, default=5, help="of each phase")
    arguments = parser.parse_args()
    try:
        asyncio.run(Bench(peer, arguments.seconds).run())
    except Exception as error:
        print(f"{peer.name}: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    # Threads of a peer's own may take long to end.
    sys.stdout.flush()
    import os
    os._exit(0)
