//! Datagrams that were opened, to nodes that know each other. They exchange real ones and do their
//! work, while others come from members' addresses: copies, altered copies, and whatever an input
//! makes of the protocol. `network` checks what the nodes do about it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use holdfast_dht::batch::{Header, Outcome, Request, Writer};
use holdfast_dht::message::{Contacts, DATAGRAM_MAX, Datagram, Life, Message, Sender};
use holdfast_dht::{Claim, Event, Id};
use holdfast_handoff::{Announcement, Resolve, Version};
use holdfast_net::FlowKey;

use super::Tally;
use super::input::Input;
use super::network::{EPOCH_US, MEMBERS, Network, Shape};

/// Flows that sessions are on.
const FLOWS: usize = 16;
/// A server that is no member.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// How long the nodes have to find each other, in µs.
const MEETING_US: u64 = 30_000;

/// Does what the input says, and tells what the nodes counted.
pub fn run(bytes: &[u8]) -> Tally {
    let mut input = Input::new(bytes);
    let mut network = Network::new(shape(&mut input));
    network.run(MEETING_US);
    while !input.is_empty() && !network.is_over() {
        step(&mut network, &mut input);
    }
    network.end()
}

fn shape(input: &mut Input<'_>) -> Shape {
    let (numbers, switches) = (input.below(9), input.byte());
    Shape {
        nodes: 2 + numbers % 3,
        replicas: 1 + numbers / 3,
        is_v6: switches & 1 != 0,
        is_plain: switches & 2 != 0,
        is_tight: switches & 4 != 0,
        has_small_buckets: switches & 8 != 0,
    }
}

fn step(network: &mut Network, input: &mut Input<'_>) {
    let what = input.below(16);
    let n = input.below(MEMBERS);
    match what {
        0 => {
            let time = u64::from(input.byte());
            network.run(match time {
                0..=127 => time * 50,
                128..=239 => (time - 127) * 5_000,
                240.. => (time - 239) * 125_000,
            });
        }
        1..=3 => announce(network, n, what == 3, input),
        4 | 5 => {
            for _ in 0..=input.below(8) {
                let resolve = Resolve { flow: flow(input), asked_at_unix_us: EPOCH_US };
                network.handle(n, Event::Resolve { ring: 0, resolve });
            }
        }
        6 => network.handle(n, Event::Survey { token: 1, flow: flow(input) }),
        7 => {
            let sender = network.address(input.below(MEMBERS)).ip();
            let flow = flow(input);
            network.handle(
                n,
                Event::Announcement(Announcement::NotMine { flow, sender: Some(sender) }),
            );
        }
        8 => again(network, n, input),
        9 => {
            let from = source(network, input);
            let len = usize::from(input.byte());
            network.deliver(n, from, input.take(len));
        }
        10 | 11 => message(network, n, input),
        12 | 13 => batch(network, n, input),
        14 => network.to_lose = input.below(64),
        _ => match input.below(8) {
            0 => network.restart(n),
            1 => network.handle(n, Event::Leave),
            _ => network.echoing = input.u16(),
        },
    }
}

fn flow(input: &mut Input<'_>) -> FlowKey {
    numbered_flow(input.below(FLOWS))
}

fn numbered_flow(n: usize) -> FlowKey {
    FlowKey::tcp_v4([20, 0, 0, n as u8], 1234, [192, 168, 0, 1], 80)
}

/// A worker tells of sessions that have begun or ended.
fn announce(network: &mut Network, n: usize, withdraw: bool, input: &mut Input<'_>) {
    let first = input.below(FLOWS);
    let version = version(network, input);
    for place in first..=first + input.below(8) {
        let flow = numbered_flow(place);
        network.handle(
            n,
            Event::Announcement(match withdraw {
                false => Announcement::Publish { flow, version },
                true => Announcement::Withdraw { flow, version },
            }),
        );
    }
}

/// The version of a session that begins now, or another one.
fn version(network: &Network, input: &mut Input<'_>) -> Version {
    Version(input.number(EPOCH_US + network.now_us))
}

/// Where a datagram seems to come from: a member nearly always.
fn source(network: &Network, input: &mut Input<'_>) -> SocketAddr {
    let choice = input.byte();
    let member = network.address(usize::from(choice));
    match choice {
        0..=239 => member,
        240..=247 => SocketAddr::new(member.ip(), input.u16()),
        248.. => SocketAddr::new(STRANGER, member.port()),
    }
}

/// A datagram that was sent comes again, perhaps altered, perhaps from or to somebody else.
fn again(network: &mut Network, n: usize, input: &mut Input<'_>) {
    let Some(flight) = network.captured(input.below(256)).cloned() else {
        return;
    };
    let choice = input.byte();
    let from = if choice & 1 == 0 { flight.from } else { source(network, input) };
    let to = (0..MEMBERS).find(|n| network.address(*n) == flight.to);
    let to = to.filter(|_| choice & 2 == 0).unwrap_or(n);
    let mut bytes = flight.bytes;
    if choice & 4 != 0 {
        input.alter(&mut bytes);
    }
    network.deliver(to, from, &bytes);
}

/// A control message of the input's.
fn message(network: &mut Network, n: usize, input: &mut Input<'_>) {
    let from = source(network, input);
    let Sender { id, locator, incarnation } = network.sender(from);
    let sender = Sender { id, locator, incarnation: input.number(incarnation) };
    let asked = network.transaction(network.node(n), from, input.below(4));
    let transaction = input.number(asked);
    let datagram = Datagram { sender, transaction, message: any_message(network, input) };
    let mut room = [0; DATAGRAM_MAX];
    let len = datagram.encode(&mut room).expect("all messages fit");
    network.deliver(n, from, &room[..len]);
}

fn any_message(network: &Network, input: &mut Input<'_>) -> Message {
    let kind = input.byte();
    // Late come, so that older inputs keep their meaning.
    if kind >= 252 {
        return Message::Superseded { id: id(network, input), claim: claim(network, input) };
    }
    match kind % 14 {
        0 => Message::Ping,
        1 => Message::Pong,
        2 => Message::FindNode { target: id(network, input), want: input.byte() },
        3 => Message::Nodes(Box::new(contacts(network, input))),
        4 => Message::FindValue { id: id(network, input) },
        5 => Message::Found(claim(network, input)),
        6 => Message::Gone(claim(network, input)),
        7 => Message::NotHeld(Box::new(contacts(network, input))),
        8 => Message::NotMine(flow(input)),
        9 => Message::PingReq { life: life(network, input), within_us: 1000 },
        10 => Message::PongRelayed { incarnation: life(network, input).incarnation, ago_us: 0 },
        11 => Message::Suspect(life(network, input)),
        12 => Message::Alive,
        _ => Message::Leave,
    }
}

/// Id of a flow's record, or of a node, or any.
fn id(network: &Network, input: &mut Input<'_>) -> Id {
    let choice = input.byte();
    match choice {
        0..=199 => network.record(&numbered_flow(usize::from(choice) % FLOWS)),
        200..=239 => network.sender(network.address(usize::from(choice))).id,
        240.. => Id(input.u128()),
    }
}

fn contacts<const N: usize>(network: &Network, input: &mut Input<'_>) -> Contacts<N> {
    let count = input.below(N + 1);
    (0..count).map(|_| source(network, input)).collect()
}

fn claim(network: &Network, input: &mut Input<'_>) -> Claim {
    let version = version(network, input);
    let owner = match input.byte() {
        member @ 0..=191 => network.address(usize::from(member)).ip(),
        192.. => STRANGER,
    };
    Claim { version, owner }
}

fn life(network: &Network, input: &mut Input<'_>) -> Life {
    let address = source(network, input);
    let incarnation = input.number(network.sender(address).incarnation);
    Life { address, incarnation }
}

/// A batch of the input's.
fn batch(network: &mut Network, n: usize, input: &mut Input<'_>) {
    let from = source(network, input);
    let header = Header {
        incarnation: input.number(network.sender(from).incarnation),
        receiver: input.number(network.sender(network.node(n)).incarnation),
        base: input.number(0) as u32,
        life: input.number(1) as u32,
    };
    let mut room = [0; DATAGRAM_MAX];
    let mut writer = Writer::new(&header, &mut room);
    let asked = network.operation(network.node(n), from, input.below(4));
    let mut number = input.number(asked) as u32;
    for _ in 0..=input.below(16) {
        let kind = input.byte();
        // Many of a kind fill a batch with few bytes of an input.
        let times = if kind & 0x80 == 0 { 1 } else { 1 + input.below(96) };
        let (id, outcome) = (id(network, input), any_outcome(network, kind, input));
        let version = version(network, input);
        for place in 0..times {
            let id = if kind & 0x40 == 0 { id } else { Id(id.0.wrapping_add(place as u128)) };
            let fits = match any_request(kind, id, version) {
                Some(request) => writer.request(number, &request),
                None => writer.result(number, &outcome),
            };
            if !fits {
                break;
            }
            number = number.wrapping_add(1);
        }
    }
    let len = writer.len();
    network.deliver(n, from, &room[..len]);
}

fn any_request(kind: u8, id: Id, version: Version) -> Option<Request> {
    match kind % 12 {
        0 => Some(Request::Lookup(id)),
        1 => Some(Request::Store(id, version)),
        2 => Some(Request::Delete(id, version)),
        3 => Some(Request::Release(id, version)),
        _ => None,
    }
}

fn any_outcome(network: &Network, kind: u8, input: &mut Input<'_>) -> Outcome {
    match kind % 12 {
        5 => Outcome::Full,
        6 => Outcome::Ahead,
        7 => Outcome::Stale(claim(network, input)),
        8 => Outcome::Found(claim(network, input)),
        9 => Outcome::Gone(claim(network, input)),
        10 => Outcome::NotHeld,
        11 => Outcome::NotReplica,
        _ => Outcome::Done,
    }
}
