//! libp2p-kad of crates.io under the flood: records over QUIC.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::channel::{mpsc, oneshot};
use futures::{FutureExt, StreamExt, select};
use holdfast_bench_peers::flood::{self, Got, NODES, Peer};
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::kad::{self, GetRecordOk, Mode, QueryId, QueryResult, Quorum, Record, RecordKey};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder};
use tokio::task::LocalSet;

const REPLICAS: NonZeroUsize = NonZeroUsize::new(3).expect("3 is not 0");

enum Command {
    Set(u64, Vec<u8>, oneshot::Sender<bool>),
    Get(u64, oneshot::Sender<Got>),
}

enum Waiting {
    Set(oneshot::Sender<bool>),
    Get(oneshot::Sender<Got>),
}

#[derive(Clone)]
struct Libp2p(Rc<RefCell<Vec<mpsc::UnboundedSender<Command>>>>);

impl Libp2p {
    fn send(&self, node: usize, command: Command) -> bool {
        self.0.borrow()[node].unbounded_send(command).is_ok()
    }
}

impl Peer for Libp2p {
    const VERSION: &'static str = "0.49.0";
    const SETTINGS: &'static str = "QUIC, 3 replicas, all of which acknowledge";

    async fn set(&self, node: usize, n: u64, value: [u8; 48]) -> bool {
        let (sender, stored) = oneshot::channel();
        self.send(node, Command::Set(n, value.to_vec(), sender)) && stored.await.unwrap_or(false)
    }

    async fn get(&self, node: usize, n: u64, _: [u8; 48]) -> Got {
        let (sender, got) = oneshot::channel();
        if !self.send(node, Command::Get(n, sender)) {
            return Got::Nothing;
        }
        got.await.unwrap_or(Got::Nothing)
    }
}

type Node = Swarm<kad::Behaviour<MemoryStore>>;

fn key(n: u64) -> RecordKey {
    RecordKey::new(&n.to_be_bytes())
}

fn behaviour(id: PeerId) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(StreamProtocol::new("/bench/kad/1"));
    config.set_replication_factor(REPLICAS);
    config.set_caching(kad::Caching::Disabled);
    config.set_replication_interval(None);
    config.set_publication_interval(None);
    let store = MemoryStoreConfig { max_records: 10_000_000, ..MemoryStoreConfig::default() };
    let store = MemoryStore::with_config(id, store);
    let mut behaviour = kad::Behaviour::with_config(id, store, config);
    behaviour.set_mode(Some(Mode::Server));
    behaviour
}

async fn node() -> Result<(Node, Multiaddr)> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|key| behaviour(key.public().to_peer_id()))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
        .build();
    swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse()?)?;
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return Ok((swarm, address));
        }
    }
}

/// One node's turn, for ever: commands in, results out.
async fn serve(mut swarm: Node, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut waiting: HashMap<QueryId, Waiting> = HashMap::new();
    loop {
        select! {
            command = commands.next() => match command {
                None => return,
                Some(command) => carry_out(&mut swarm, command, &mut waiting),
            },
            event = swarm.select_next_some().fuse() => {
                if let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed {
                    id, result, step, ..
                }) = event
                {
                    progress(&mut swarm, id, result, step.last, &mut waiting);
                }
            }
        }
    }
}

fn carry_out(swarm: &mut Node, command: Command, waiting: &mut HashMap<QueryId, Waiting>) {
    match command {
        Command::Set(n, value, reply) => {
            let record = Record::new(key(n), value);
            match swarm.behaviour_mut().put_record(record, Quorum::All) {
                Ok(id) => drop(waiting.insert(id, Waiting::Set(reply))),
                Err(_) => drop(reply.send(false)),
            }
        }
        Command::Get(n, reply) => {
            let id = swarm.behaviour_mut().get_record(key(n));
            waiting.insert(id, Waiting::Get(reply));
        }
    }
}

fn progress(
    swarm: &mut Node,
    id: QueryId,
    result: QueryResult,
    is_last: bool,
    waiting: &mut HashMap<QueryId, Waiting>,
) {
    let got = match result {
        QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => {
            // The first is enough.
            if let Some(mut query) = swarm.behaviour_mut().query_mut(&id) {
                query.finish();
            }
            if found.peer.is_some() { Got::Value(found.record.value) } else { Got::Local }
        }
        QueryResult::PutRecord(stored) => {
            if let Some(Waiting::Set(reply)) = waiting.remove(&id) {
                let _ = reply.send(stored.is_ok());
            }
            return;
        }
        _ if is_last => Got::Nothing,
        _ => return,
    };
    if let Some(Waiting::Get(reply)) = waiting.remove(&id) {
        let _ = reply.send(got);
    }
}

async fn start() -> Result<Libp2p> {
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(node().await?);
    }
    let addresses: Vec<(PeerId, Multiaddr)> =
        nodes.iter().map(|(swarm, address)| (*swarm.local_peer_id(), address.clone())).collect();
    let mut commands = Vec::new();
    for (mut swarm, _) in nodes {
        let own = *swarm.local_peer_id();
        for (id, address) in addresses.iter().filter(|(id, _)| *id != own) {
            swarm.behaviour_mut().add_address(id, address.clone());
        }
        swarm.behaviour_mut().bootstrap().context("bootstrap")?;
        let (sender, receiver) = mpsc::unbounded();
        commands.push(sender);
        tokio::task::spawn(serve(swarm, receiver));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok(Libp2p(Rc::new(RefCell::new(commands))))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    LocalSet::new().run_until(async { flood::run(start().await?).await }).await
}
