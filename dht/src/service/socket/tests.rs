//! Batches over real sockets on loopback addresses: whole, of any length, and with datagrams
//! among them that cannot be sent.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::*;

const TOKEN: Token = Token(0);

/// A socket of the service, its poll, and what was counted.
struct Port {
    poll: Poll,
    socket: ControlSocket,
    counters: Counters,
    address: SocketAddr,
}

impl Port {
    fn bind(address: IpAddr) -> Port {
        Port::over(bind((address, 0).into()).unwrap())
    }

    fn over(socket: UdpSocket) -> Port {
        let poll = Poll::new().unwrap();
        let address = socket.local_addr().unwrap();
        let socket = ControlSocket::new(socket, poll.registry(), TOKEN).unwrap();
        Port { poll, socket, counters: Counters::default(), address }
    }

    /// Queues a datagram of `len` times `byte`.
    fn queue(&mut self, to: SocketAddr, byte: u8, len: usize) {
        self.socket.vacant().unwrap()[..len].fill(byte);
        self.socket.queue(to, len);
    }

    fn flush(&mut self) -> bool {
        self.socket.flush(self.poll.registry(), &mut self.counters)
    }

    fn count(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }

    /// Source, first byte and length of what is there.
    fn receive(&mut self) -> Vec<(SocketAddr, u8, usize)> {
        let received = match self.socket.receive() {
            Ok(received) => received,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                return Vec::new();
            }
        };
        let mut all = Vec::new();
        for place in 0..received {
            let (from, bytes) = self.socket.received(place);
            let first = bytes.first().copied().unwrap_or_default();
            assert!(bytes.iter().all(|byte| *byte == first));
            all.push((from, first, bytes.len()));
        }
        all
    }
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

#[test]
fn batches_arrive_as_they_were_queued() {
    for address in [V4, V6] {
        let (mut left, mut right) = (Port::bind(address), Port::bind(address));
        assert_eq!(right.receive(), []);
        // Batches of all sizes one after the other: no buffer remembers the one before.
        for batch in [BATCH, 1, BATCH / 2, BATCH] {
            let len = |n: usize| if n == 0 { 0 } else { SEALED_MAX - n * 7 % 1000 };
            for n in 0..batch {
                left.queue(right.address, n as u8, len(n));
            }
            assert_eq!(left.socket.vacant().is_none(), batch == BATCH);
            assert!(left.flush());
            let expected: Vec<_> = (0..batch).map(|n| (left.address, n as u8, len(n))).collect();
            assert_eq!(right.receive(), expected);
            assert_eq!(right.receive(), []);
        }
        assert_eq!(left.count(Counter::DatagramsSent), 2 * BATCH as u64 + 1 + BATCH as u64 / 2);
    }
}

#[test]
fn more_than_a_batch_is_received_in_turns() {
    let (mut left, mut right) = (Port::bind(V4), Port::bind(V4));
    for n in 0..BATCH + 3 {
        left.queue(right.address, n as u8, 100);
        assert!(left.flush());
    }
    assert_eq!(right.receive().len(), BATCH);
    assert_eq!(right.receive().len(), 3);
}

#[test]
fn a_datagram_that_is_too_long_is_seen_to_be() {
    for address in [V4, V6] {
        let mut right = Port::bind(address);
        let left = std::net::UdpSocket::bind((address, 0)).unwrap();
        for len in [SEALED_MAX, SEALED_MAX + 1, 1500, 60_000, 0] {
            left.send_to(&vec![1; len], right.address).unwrap();
        }
        let lens: Vec<usize> = right.receive().iter().map(|(_, _, len)| *len).collect();
        assert_eq!(lens, [SEALED_MAX, SEALED_MAX + 1, SEALED_MAX + 1, SEALED_MAX + 1, 0]);
    }
}

#[test]
fn what_cannot_be_sent_takes_nothing_with_it() {
    for address in [V4, V6] {
        let (mut left, mut right) = (Port::bind(address), Port::bind(address));
        let nowhere = SocketAddr::new(address, 0);
        for n in 0..10 {
            left.queue(if n % 3 == 0 { nowhere } else { right.address }, n, 50);
        }
        assert!(left.flush());
        let arrived: Vec<u8> = right.receive().iter().map(|(_, first, _)| *first).collect();
        assert_eq!(arrived, [1, 2, 4, 5, 7, 8]);
        assert_eq!(left.count(Counter::SendErrors), 4);
        assert_eq!(left.count(Counter::DatagramsSent), 6);
        assert_eq!(left.count(Counter::LateErrors), 0);
    }
}

#[test]
fn an_icmp_error_takes_nothing_with_it() {
    let mut right = Port::bind(V4);
    // Only a connected socket hears of ICMP errors; it can send to others all the same.
    let closed = std::net::UdpSocket::bind((V4, 0)).unwrap().local_addr().unwrap();
    let socket = bind((V4, 0).into()).unwrap();
    socket.connect(closed).unwrap();
    let mut left = Port::over(socket);
    for n in 0..10 {
        left.queue(if n % 3 == 0 { closed } else { right.address }, n, 50);
    }
    assert!(left.flush());
    let arrived: Vec<u8> = right.receive().iter().map(|(_, first, _)| *first).collect();
    assert_eq!(arrived, [1, 2, 4, 5, 7, 8]);
    // The datagrams to the closed port left too; each but the last was heard of while sending.
    assert_eq!(left.count(Counter::DatagramsSent), 10);
    assert_eq!((left.count(Counter::LateErrors), left.count(Counter::SendErrors)), (3, 0));
    let error = left.socket.receive().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "the last one's");
    assert_eq!(left.receive(), []);
}

#[test]
fn the_kernel_grants_what_it_is_asked_for() {
    let [receive, send] = Port::bind(V4).socket.buffer_sizes().unwrap();
    // Without CAP_NET_ADMIN the system's limit holds.
    let limit = |name| -> usize {
        let limit = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap();
        limit.trim().parse().unwrap()
    };
    for (granted, limit) in [(receive, limit("rmem_max")), (send, limit("wmem_max"))] {
        assert!(granted >= 2 * BUFFER_BYTES.min(limit), "{granted}, {limit}");
    }
}

/// Loopback never fills a send buffer. A link where nobody answers ARP does:
/// ```text
/// ip netns add hf-full
/// ip -n hf-full link add hf0 type veth peer name hf1
/// ip -n hf-full addr add 10.255.7.1/24 dev hf0
/// ip -n hf-full link set hf0 up; ip -n hf-full link set hf1 up
/// ip netns exec hf-full cargo test -p holdfast-dht --lib a_full_buffer -- --ignored
/// ip netns del hf-full
/// ```
#[test]
#[ignore = "needs a network namespace of its own"]
fn a_full_buffer_makes_the_rest_wait_and_the_poll_tell() {
    let own = IpAddr::from([10, 255, 7, 1]);
    let mut left = Port::bind(own);
    socket2::SockRef::from(&left.socket.socket).set_send_buffer_size(1).unwrap();
    const QUEUED: u64 = 8;
    for n in 0..QUEUED as u8 {
        left.queue(SocketAddr::new([10, 255, 7, 2].into(), 9), n, SEALED_MAX);
    }
    assert!(!left.flush(), "full");
    assert_eq!(left.count(Counter::SendWouldBlock), 1);
    let sent = left.count(Counter::DatagramsSent);
    assert!((1..5).contains(&sent), "{sent}");
    let mut events = Events::with_capacity(8);
    left.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    assert!(events.is_empty(), "no room yet, nothing to do");
    // ARP gives up after three seconds and frees what waited for it.
    let mut wakeups = 0;
    while !left.flush() {
        left.poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert!(events.iter().any(mio::event::Event::is_writable), "{events:?}");
        wakeups += 1;
        assert!(wakeups <= 2 * QUEUED, "spins");
    }
    let (sent, errors) = (left.count(Counter::DatagramsSent), left.count(Counter::SendErrors));
    assert_eq!(sent + errors, QUEUED, "none is lost unseen");
    // Room to send is nothing to be told of any more.
    left.poll.poll(&mut events, Some(Duration::from_millis(4000))).unwrap();
    assert!(events.is_empty(), "{events:?}");
}

/// What a datagram costs with both ends on one core; run it pinned, in release:
/// `taskset -c 0 cargo test --release -p holdfast-dht --lib datagram_cost -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn datagram_cost() {
    const ROUNDS: usize = 301;
    println!("bytes  datagrams a call  ns sent  ns received (medians of {ROUNDS} rounds)");
    let (mut left, mut right) = (Port::bind(V4), Port::bind(V4));
    for len in [118, SEALED_MAX] {
        for batch in [1, 4, 16, BATCH] {
            let mut times = [(); ROUNDS].map(|()| {
                let [mut send, mut receive] = [Duration::ZERO; 2];
                for _ in 0..BATCH / batch {
                    for _ in 0..batch {
                        left.socket.vacant().unwrap();
                        left.socket.queue(right.address, len);
                    }
                    let started = Instant::now();
                    assert!(left.flush());
                    let sent = Instant::now();
                    assert_eq!(right.socket.receive().unwrap(), batch);
                    receive += sent.elapsed();
                    send += sent - started;
                }
                [send, receive].map(|time| time.as_nanos() / BATCH as u128)
            });
            let [send, receive] = [0, 1].map(|which| {
                times.sort_unstable_by_key(|round| round[which]);
                times[ROUNDS / 2][which]
            });
            println!("{len:>5}  {batch:>16}  {send:>7}  {receive:>11}");
        }
    }
}
