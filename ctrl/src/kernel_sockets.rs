//! The TCP sockets that the host's kernel holds, read by sock_diag(7): the truth about which
//! sessions are ours (R1, R7). Never changes anything in the kernel, and never keeps what it
//! lists.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_dataplane::kernel::{Held, HeldSession, Kernel};
use holdfast_dataplane::session::State;
use holdfast_handoff::{Version, unix_us};
use holdfast_net::FlowKey;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED, TCP_FIN_WAIT1,
    TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_LISTEN, TCP_TIME_WAIT,
};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// States of the kernel and what they are to us. The others are no sessions: no handshake yet, or
/// FIN both ways (`TIME_WAIT`, `LAST_ACK`, `CLOSING`).
const STATES: [(u8, State); 4] = [
    (TCP_ESTABLISHED, State::Established),
    (TCP_FIN_WAIT1, State::HostClosed),
    (TCP_FIN_WAIT2, State::HostClosed),
    (TCP_CLOSE_WAIT, State::ClientClosed),
];

/// The kernel counts the time in jiffies of up to 10 ms. A session must not seem to be older than
/// its own SYN-ACK, which its record has for its version. In milliseconds.
const COARSE_MS: u32 = 20;
/// Room for what the kernel sends at once; it fills at most 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The kernel answers at once. Without an answer for so long, there is none.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// "Whatever the socket's cookie is": `INET_DIAG_NOCOOKIE`.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// The kernel of the network namespace that the daemon runs in.
pub struct KernelSockets {
    /// Open while it works: what is left of an answer that was not read goes with it.
    socket: Option<Socket>,
    buffer: Vec<u8>,
    stop: Arc<AtomicBool>,
}

impl KernelSockets {
    /// Asks until `stop` is set: then nothing is answered any more.
    #[must_use]
    pub fn new(stop: Arc<AtomicBool>) -> KernelSockets {
        KernelSockets { socket: None, buffer: Vec::with_capacity(RECEIVE_BYTES), stop }
    }

    /// Sends a request and shows `see` each message of the answer, until it returns something.
    fn ask<T>(
        &mut self,
        request: &[u8],
        see: impl FnMut(NetlinkPayload<SockDiagMessage>) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open()?,
        };
        let answer = exchange(&socket, &mut self.buffer, &self.stop, request, see)?;
        self.socket = Some(socket);
        Ok(answer)
    }
}

impl Kernel for KernelSockets {
    type Error = anyhow::Error;

    fn list(&mut self, see: &mut dyn FnMut(HeldSession)) -> anyhow::Result<()> {
        for id in [SocketId::new_v4(), SocketId::new_v6()] {
            let request = request(id, NLM_F_DUMP);
            let done = self.ask(&request, |payload| match payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    session(&response).map(&mut *see);
                    Ok(None)
                }
                NetlinkPayload::Done(_) => Ok(Some(())),
                NetlinkPayload::Error(error) => bail!("the kernel answers {error}"),
                _ => Ok(None),
            });
            done.context("reading the kernel's sockets (sock_diag)")?;
        }
        Ok(())
    }

    fn holds(&mut self, flow: &FlowKey) -> anyhow::Result<Held> {
        let (client, service) = (flow.client(), flow.service());
        let id = SocketId {
            source_address: service.ip(),
            source_port: service.port(),
            destination_address: client.ip(),
            destination_port: client.port(),
            interface_id: 0,
            cookie: ANY_COOKIE,
        };
        // The kernel looks a segment's socket up alike: the session's own, else the one that
        // listens.
        let held = self.ask(&request(id, 0), |payload| match payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                Ok(Some(held(response.header.state)))
            }
            NetlinkPayload::Error(error) if error.to_io().kind() == ErrorKind::NotFound => {
                Ok(Some(Held::NoService))
            }
            NetlinkPayload::Error(error) => bail!("the kernel answers {error}"),
            _ => Ok(None),
        });
        held.context("asking the kernel for a socket (sock_diag)")
    }
}

/// A kernel without the sessions that a server has with itself, as by the checks of its services:
/// they never leave it, and are nobody's to look for.
#[derive(Debug)]
pub struct WithoutOwn<K>(pub K);

impl<K: Kernel> Kernel for WithoutOwn<K> {
    type Error = K::Error;

    fn list(&mut self, see: &mut dyn FnMut(HeldSession)) -> Result<(), K::Error> {
        self.0.list(&mut |session| {
            if session.flow.client().ip() != session.flow.service().ip() {
                see(session);
            }
        })
    }

    fn holds(&mut self, flow: &FlowKey) -> Result<Held, K::Error> {
        self.0.holds(flow)
    }
}

fn open() -> anyhow::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WAIT))?;
    Ok(socket)
}

fn exchange<T>(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    stop: &AtomicBool,
    request: &[u8],
    mut see: impl FnMut(NetlinkPayload<SockDiagMessage>) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    socket.send(request, 0)?;
    while !stop.load(Ordering::Relaxed) {
        buffer.clear();
        socket.recv(buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)?;
            // Messages are aligned to four bytes (netlink(7)).
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            if let Some(answer) = see(message.payload)? {
                return Ok(answer);
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    bail!("stopped")
}

/// A request for all sessions, with `NLM_F_DUMP`, or for one socket.
fn request(socket_id: SocketId, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let states = STATES.iter().fold(0, |bits, (number, _)| bits | 1 << number);
    let request = InetRequest {
        family: if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::from_bits_truncate(states),
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn session(response: &InetResponse) -> Option<HeldSession> {
    let InetResponseHeader { socket_id: id, state, .. } = &response.header;
    let (_, state) = STATES.iter().find(|(number, _)| number == state)?;
    let service = SocketAddr::new(plain(id.source_address), id.source_port);
    let client = SocketAddr::new(plain(id.destination_address), id.destination_port);
    let info = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::TcpInfo(info) => Some(info.as_slice()),
        _ => None,
    });
    let heard = info.and_then(heard_ms_ago).map_or(Version::UNKNOWN, |ms_ago| {
        Version(unix_us().saturating_sub(u64::from(ms_ago.saturating_sub(COARSE_MS)) * 1000))
    });
    Some(HeldSession { flow: FlowKey::tcp(client, service)?, state: *state, heard })
}

/// How long ago the client was last heard, in milliseconds: `tcpi_last_data_recv` or
/// `tcpi_last_ack_recv` of `struct tcp_info`, whichever is less.
fn heard_ms_ago(info: &[u8]) -> Option<u32> {
    let (data, ack) = info.get(52..60)?.split_first_chunk::<4>()?;
    let ack = ack.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*data).min(u32::from_ne_bytes(*ack)))
}

fn held(kernel_state: u8) -> Held {
    match STATES.iter().find(|(number, _)| *number == kernel_state) {
        Some((_, state)) => Held::Session(*state),
        None if matches!(kernel_state, TCP_LISTEN | TCP_TIME_WAIT | TCP_LAST_ACK | TCP_CLOSING) => {
            Held::Over
        }
        None => Held::Opening,
    }
}

/// A socket that serves both families has IPv4 peers as mapped addresses.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout)]
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::Instant;

    /// Looks again and again until it sees what is expected.
    fn until<T: PartialEq + std::fmt::Debug>(expected: T, mut look: impl FnMut() -> T) {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let seen = look();
            if seen == expected {
                return;
            }
            assert!(Instant::now() < end, "{seen:?}, not {expected:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn r7_sessions_of_a_server_with_itself_are_nobodys() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap();
        let client = |source: [u8; 4]| {
            use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
            let client = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            bind(&client, &SocketAddr::from((source, 0))).unwrap();
            connect(&client, &service).unwrap();
            TcpStream::from(client)
        };
        let (own, other) = (client([127, 0, 0, 1]), client([127, 0, 0, 2]));
        let mut kernel = WithoutOwn(KernelSockets::new(Arc::default()));
        let flow = FlowKey::tcp(other.local_addr().unwrap(), service).unwrap();
        until(vec![flow], || {
            let mut seen = Vec::new();
            let see = &mut |held: HeldSession| seen.push(held.flow);
            kernel.list(see).unwrap();
            seen.retain(|flow| flow.service() == service);
            seen
        });
        assert_eq!(kernel.holds(&flow).unwrap(), Held::Session(State::Established));
        drop((own, other));
    }

    /// Both families, and IPv4 through a socket of IPv6, against the kernel of this machine.
    #[test]
    fn r1_r7_finds_the_kernels_sessions() {
        for (listen, connect) in
            [("127.0.0.1:0", None), ("[::1]:0", None), ("[::]:0", Some("127.0.0.1"))]
        {
            let Ok(listener) = TcpListener::bind(listen) else {
                println!("SKIPPED: no {listen} on this machine");
                continue;
            };
            let mut service = listener.local_addr().unwrap();
            if let Some(address) = connect {
                service.set_ip(address.parse().unwrap());
            }
            let mut kernel = KernelSockets::new(Arc::default());
            let mut both = |flow: FlowKey| {
                let mut listed = Vec::new();
                let see = &mut |found: HeldSession| {
                    if found.flow.service() == service {
                        listed.push((found.flow, found.state));
                    }
                };
                kernel.list(see).unwrap();
                (listed, kernel.holds(&flow).unwrap())
            };
            let client = TcpStream::connect(service).unwrap();
            let flow = FlowKey::tcp(client.local_addr().unwrap(), service).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            for (close, state) in [(false, State::Established), (true, State::ClientClosed)] {
                if close {
                    client.shutdown(Shutdown::Write).unwrap();
                }
                until((vec![(flow, state)], Held::Session(state)), || both(flow));
            }
            // Over: the client is in TIME_WAIT, and the service's socket is gone.
            drop(accepted);
            until((vec![], Held::Over), || both(flow));
            drop(listener);
            until((vec![], Held::NoService), || both(flow));
        }
    }

    /// What is learnt counts from when the client was last heard, not from when it was read.
    #[test]
    fn r12_a_silent_client_was_heard_long_ago() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap();
        let before = unix_us();
        let mut client = TcpStream::connect(service).unwrap();
        let _accepted = listener.accept().unwrap();
        let opened = unix_us();
        std::thread::sleep(Duration::from_millis(300));
        let mut kernel = KernelSockets::new(Arc::default());
        let mut heard = || {
            let mut heard = None;
            let mut note = |held: HeldSession| {
                if held.flow.service() == service {
                    heard = Some(held.heard.0);
                }
            };
            kernel.list(&mut note).unwrap();
            heard.unwrap()
        };
        let slack = 100_000;
        let first = heard();
        assert!((before..opened + slack).contains(&first), "{before} {first} {opened}");
        client.write_all(b"here").unwrap();
        let sent = unix_us();
        let second = heard();
        assert!((sent - slack..sent + slack).contains(&second), "{sent} {second}");
    }

    /// The service closes first: the socket waits for the client, then in `TIME_WAIT`.
    #[test]
    fn r8_time_wait_is_over() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap();
        let client = TcpStream::connect(service).unwrap();
        let flow = FlowKey::tcp(client.local_addr().unwrap(), service).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let mut kernel = KernelSockets::new(Arc::default());
        accepted.shutdown(Shutdown::Write).unwrap();
        until(Held::Session(State::HostClosed), || kernel.holds(&flow).unwrap());
        drop(client);
        drop(listener);
        // No socket listens any more: what answers is the one in TIME_WAIT.
        until(Held::Over, || kernel.holds(&flow).unwrap());
        let mut listed = false;
        kernel.list(&mut |found| listed |= found.flow == flow).unwrap();
        assert!(!listed);
    }

    #[test]
    fn a_stopped_one_does_not_answer() {
        let stop = Arc::new(AtomicBool::new(true));
        let mut kernel = KernelSockets::new(Arc::clone(&stop));
        assert!(kernel.list(&mut |_| {}).is_err());
        stop.store(false, Ordering::Relaxed);
        kernel.list(&mut |_| {}).unwrap();
    }
}
