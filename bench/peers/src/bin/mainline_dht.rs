//! mainline of crates.io under the flood: immutable items (BEP 44) of its BitTorrent DHT.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_bench_peers::flood::{self, Got, NODES, Peer};
use mainline::async_dht::AsyncDht;
use mainline::{Dht, ServerSettings};
use tokio::task::LocalSet;

#[derive(Clone)]
struct Mainline(Vec<AsyncDht>);

impl Peer for Mainline {
    const VERSION: &'static str = "8.0.1";
    const SETTINGS: &'static str = "immutable items, room for 1,000,000, up to 20 replicas";

    async fn set(&self, node: usize, _: u64, value: [u8; 48]) -> bool {
        self.0[node].put_immutable(&value).await.is_ok()
    }

    async fn get(&self, node: usize, _: u64, value: [u8; 48]) -> Got {
        match self.0[node].get_immutable(item_id(&value)).await {
            Some(bytes) => Got::Value(bytes.into()),
            None => Got::Nothing,
        }
    }
}

/// The key of an immutable item: the SHA-1 of the value as bencode writes it.
fn item_id(value: &[u8]) -> mainline::Id {
    let mut bencoded = format!("{}:", value.len()).into_bytes();
    bencoded.extend_from_slice(value);
    let mut hash = sha1_smol::Sha1::new();
    hash.update(&bencoded);
    hash.digest().bytes().into()
}

async fn start() -> Result<Mainline> {
    let mut nodes: Vec<AsyncDht> = Vec::new();
    for _ in 0..NODES {
        let mut builder = Dht::builder();
        let settings =
            ServerSettings { max_immutable_values: 1_000_000, ..ServerSettings::default() };
        builder.server_mode().bind_address(Ipv4Addr::LOCALHOST).server_settings(settings);
        match nodes.first() {
            None => builder.no_bootstrap(),
            Some(first) => builder.bootstrap(&[first.info().await.local_addr()]),
        };
        nodes.push(builder.build()?.as_async());
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in &nodes[1..] {
        ensure!(node.bootstrapped().await, "a node did not join");
    }
    Ok(Mainline(nodes))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    LocalSet::new().run_until(async { flood::run(start().await?).await }).await?;
    // Its threads sleep long before they end.
    std::process::exit(0);
}
