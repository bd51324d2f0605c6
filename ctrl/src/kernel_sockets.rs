//! The TCP sockets that the host's kernel holds, read by sock_diag(7): the truth about which
//! sessions are ours (R1, R7). Never changes anything in the kernel.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail};
use holdfast_dataplane::session::State;
use holdfast_net::FlowKey;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

/// States of the kernel and what they are to us.
const STATES: [(u8, State); 4] = [
    (TCP_ESTABLISHED, State::Established),
    (TCP_FIN_WAIT1, State::HostClosed),
    (TCP_FIN_WAIT2, State::HostClosed),
    (TCP_CLOSE_WAIT, State::ClientClosed),
];

/// Room for what the kernel sends at once; it fills at most 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;

/// Shows `see` every session that the kernel holds on a socket for which `is_service` is true.
///
/// # Errors
/// When the kernel refuses or its answer cannot be read.
pub fn sessions(
    is_service: impl Fn(SocketAddr) -> bool,
    mut see: impl FnMut(FlowKey, State),
) -> anyhow::Result<()> {
    for family in [AF_INET, AF_INET6] {
        dump(family, &is_service, &mut see).context("reading the kernel's sockets (sock_diag)")?;
    }
    Ok(())
}

fn dump(
    family: u8,
    is_service: &impl Fn(SocketAddr) -> bool,
    see: &mut impl FnMut(FlowKey, State),
) -> anyhow::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&request(family), 0)?;

    let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)?;
            // Messages are aligned to four bytes (netlink(7)).
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let header = &response.header;
                    if let Some((flow, state)) = session(&header.socket_id, header.state)
                        && is_service(flow.service())
                    {
                        see(flow, state);
                    }
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => bail!("the kernel answers {error}"),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request(family: u8) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let states = STATES.iter().fold(0, |bits, (number, _)| bits | 1 << number);
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_truncate(states),
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn session(id: &SocketId, kernel_state: u8) -> Option<(FlowKey, State)> {
    let (_, state) = STATES.iter().find(|(number, _)| *number == kernel_state)?;
    let service = SocketAddr::new(plain(id.source_address), id.source_port);
    let client = SocketAddr::new(plain(id.destination_address), id.destination_port);
    Some((FlowKey::tcp(client, service)?, *state))
}

/// A socket that serves both families has IPv4 peers as mapped addresses.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout)]
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// Both families, and IPv4 through a socket of IPv6, against the kernel of this machine.
    #[test]
    fn r7_finds_the_kernels_sessions() {
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
            let client = TcpStream::connect(service).unwrap();
            let (_accepted, _) = listener.accept().unwrap();
            let flow = FlowKey::tcp(client.local_addr().unwrap(), service).unwrap();
            let until_seen = |expected: State| {
                let end = Instant::now() + Duration::from_secs(5);
                loop {
                    let mut seen = Vec::new();
                    let is_service = |socket| socket == service;
                    sessions(is_service, |flow, state| seen.push((flow, state))).unwrap();
                    if seen == [(flow, expected)] {
                        return;
                    }
                    assert!(Instant::now() < end, "{listen}: {seen:?}, not {expected:?}");
                    std::thread::sleep(Duration::from_millis(10));
                }
            };
            until_seen(State::Established);
            client.shutdown(std::net::Shutdown::Write).unwrap();
            until_seen(State::ClientClosed);
        }
    }
}
