"""libtorrent of PyPI under flood.py: immutable items (BEP 44) of its BitTorrent DHT."""

import asyncio
import hashlib
import os
import time

import libtorrent

import flood

PORT = 7200
# All limits that exist to protect the public DHT are off, and room is made for the items.
SETTINGS = {
    "enable_dht": True,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_bootstrap_nodes": "",
    "dht_upload_rate_limit": 2**31 - 1,
    "dht_max_dht_items": 10_000_000,
    "dht_block_ratelimit": 1_000_000,
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_prefer_verified_node_ids": False,
    "dht_enforce_node_id": False,
    "dht_ignore_dark_internet": False,
    "dht_privacy_lookups": False,
    "alert_queue_size": 1_000_000,
    "alert_mask": libtorrent.alert.category_t.dht_notification
    | libtorrent.alert.category_t.error_notification,
}


def target(n):
    """The item's key: the hash of the value as bencode writes it."""
    value = flood.value(n)
    return hashlib.sha1(str(len(value)).encode() + b":" + value).digest()


class Libtorrent:
    name = "libtorrent"
    version = libtorrent.__version__
    settings = "immutable items, rate limits off, 8 replicas"

    async def start(self, nodes):
        self.puts, self.gets = {}, {}
        self.sessions = []
        loop = asyncio.get_running_loop()
        for n in range(nodes):
            session = libtorrent.session(
                {**SETTINGS, "listen_interfaces": f"127.0.0.1:{PORT + n}"}
            )
            ours, theirs = os.pipe()
            session.set_alert_fd(theirs)
            loop.add_reader(ours, self.alerts, n, ours)
            self.sessions.append(session)
        await asyncio.sleep(1)
        for one in range(nodes):
            for other in range(nodes):
                if one != other:
                    self.sessions[one].add_dht_node(("127.0.0.1", PORT + other))
        await asyncio.sleep(3)

    def alerts(self, node, fd):
        os.read(fd, 4096)
        now = time.perf_counter()
        for alert in self.sessions[node].pop_alerts():
            if isinstance(alert, libtorrent.dht_put_alert):
                waiting, got = self.puts, alert.num_success
            elif isinstance(alert, libtorrent.dht_immutable_item_alert):
                waiting, got = self.gets, alert.item
            else:
                continue
            future, start = waiting.pop((node, alert.target.to_bytes()), (None, None))
            if future is not None and not future.done():
                future.set_result((now - start, got))

    def wait(self, waiting, node, key):
        future = asyncio.get_running_loop().create_future()
        waiting[node, key] = future, time.perf_counter()
        return future

    async def set(self, node, n):
        future = self.wait(self.puts, node, target(n))
        self.sessions[node].dht_put_immutable_item(flood.value(n))
        seconds, stored = await future
        if stored < 1:
            raise RuntimeError("not stored")
        return seconds

    async def get(self, node, n):
        key = target(n)
        while (node, key) in self.gets:
            await asyncio.sleep(0.001)
        future = self.wait(self.gets, node, key)
        self.sessions[node].dht_get_immutable_item(libtorrent.sha1_hash(key))
        seconds, item = await future
        return seconds, item if isinstance(item, bytes) else (item or {}).get("value")

    async def before_gets(self):
        pass

    def is_local(self, node, n):
        return False  # it always asks the network


flood.main(Libtorrent())
