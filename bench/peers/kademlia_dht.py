"""kademlia of PyPI under flood.py: UDP, one replica set of three."""

import asyncio
import time
from importlib.metadata import version

from kademlia.network import Server
from kademlia.utils import digest

import flood

PORT = 7100


class Kademlia:
    name = "kademlia"
    version = version("kademlia")
    settings = "3 replicas, k-buckets of 20, alpha=3"

    async def start(self, nodes):
        self.servers = [Server(ksize=3, node_id=digest(n)) for n in range(nodes)]
        for n, server in enumerate(self.servers):
            await server.listen(PORT + n, interface="127.0.0.1")
            # With k-buckets of three as well, full ones ping their heads without end.
            server.protocol.router.ksize = 20
            server.protocol.router.flush()
        first = ("127.0.0.1", PORT)
        for _ in range(2):
            for server in self.servers[1:]:
                await server.bootstrap([first])
        await asyncio.sleep(1)

    async def set(self, node, n):
        start = time.perf_counter()
        if not await self.servers[node].set(str(n), flood.value(n)):
            raise RuntimeError("not stored")
        return time.perf_counter() - start

    async def get(self, node, n):
        start = time.perf_counter()
        got = await self.servers[node].get(str(n))
        return time.perf_counter() - start, got

    async def before_gets(self):
        pass

    def is_local(self, node, n):
        return self.servers[node].storage.get(digest(str(n))) is not None


flood.main(Kademlia())
