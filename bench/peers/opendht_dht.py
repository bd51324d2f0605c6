"""OpenDHT of PyPI (the project's own Python binding) under flood.py."""

import asyncio
import time
from importlib.metadata import version

import opendht

import flood

PORT = 7300


class OpenDht:
    name = "opendht"
    version = version("opendht")
    settings = "rate limit off, 8 replicas"

    async def start(self, nodes):
        self.nodes = []
        for n in range(nodes):
            config = opendht.DhtConfig()
            config.setRateLimit(10_000_000, 10_000_000)
            runner = opendht.DhtRunner()
            runner.run(port=PORT + n, ipv4="127.0.0.1", config=config)
            self.nodes.append(runner)
        for runner in self.nodes[1:]:
            runner.bootstrap("127.0.0.1", str(PORT))
        await asyncio.sleep(5)

    def key(self, n):
        return opendht.InfoHash.get(str(n))

    def wait(self):
        """A future, and what fulfils it from any thread with the time and a result."""
        loop = asyncio.get_running_loop()
        future, start = loop.create_future(), time.perf_counter()

        def fulfil(result):
            if not future.done():
                future.set_result(result)

        def end(result):
            loop.call_soon_threadsafe(fulfil, (time.perf_counter() - start, result))

        return future, end

    async def set(self, node, n):
        future, end = self.wait()
        self.nodes[node].put(self.key(n), opendht.Value(flood.value(n)), lambda ok, _: end(ok))
        seconds, ok = await future
        if not ok:
            raise RuntimeError("not stored")
        return seconds

    async def get(self, node, n):
        future, end = self.wait()

        def got(value):
            end(bytes(value.data))
            return False  # the first is enough

        self.nodes[node].get(self.key(n), got, lambda ok, _: end(None))
        return await future

    async def before_gets(self):
        """Notes who holds what: a node looks into its own storage first."""
        self.held = [
            {line.split()[1] for line in node.getStorageLog().splitlines() if "Storage" in line}
            for node in self.nodes
        ]

    def is_local(self, node, n):
        return str(self.key(n)) in self.held[node]


flood.main(OpenDht())
