//! The control port's socket: receives and sends up to [`BATCH`] datagrams with one system call,
//! in buffers made at start. Never looks into a datagram, never waits, and never loses the rest of
//! a batch for one datagram that cannot be sent.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use arrayvec::ArrayVec;
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use socket2::{Domain, Protocol, Socket, Type};

use crate::auth::SEALED_MAX;
use crate::stats::{Counter, Counters};

/// Datagrams of one system call at most.
pub(super) const BATCH: usize = 64;
/// What is asked for as each of the kernel's two buffers of the socket: some 3,500 of the largest
/// datagrams, and more of smaller ones.
const BUFFER_BYTES: usize = 8 << 20;
/// One byte more than a datagram may have, so that a longer one is seen to be too long.
const RECEIVED_MAX: usize = SEALED_MAX + 1;

/// The socket with all its buffers.
#[derive(Debug)]
pub(super) struct ControlSocket {
    socket: UdpSocket,
    token: Token,
    inbound: Inbound,
    outbound: Outbound,
}

/// The last batch that was received.
#[derive(Debug)]
struct Inbound {
    headers: Headers,
    buffers: Box<[[u8; RECEIVED_MAX]; BATCH]>,
    /// Source and length, in the order of the buffers.
    datagrams: ArrayVec<(SocketAddr, usize), BATCH>,
}

/// What the kernel fills in for each datagram, sources of the socket's address family.
#[derive(Debug)]
enum Headers {
    V4(MultiHeaders<SockaddrIn>),
    V6(MultiHeaders<SockaddrIn6>),
}

/// What is to be sent: all that is due goes through here, but no more than this waits here when
/// the kernel's buffer is full.
#[derive(Debug)]
struct Outbound {
    buffers: Box<[[u8; SEALED_MAX]; BATCH]>,
    /// Destination and length, in the order of the buffers.
    datagrams: ArrayVec<(SocketAddrAny, usize), BATCH>,
    /// How many of these are with the kernel already.
    done: usize,
    /// Whether the kernel's buffer was full at the last attempt.
    is_blocked: bool,
}

/// Binds a socket, with the largest buffers that the kernel grants.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Above the system's limit only with CAP_NET_ADMIN, which the appliance has. Less is slower
    // under load, not wrong.
    if set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    }
    if set_socket_send_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(UdpSocket::from_std(socket.into()))
}

/// What finds a socket in the kernel's tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct SocketInode {
    number: u64,
    table: &'static str,
}

impl SocketInode {
    /// Of a socket that is bound.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn of(socket: &UdpSocket) -> io::Result<SocketInode> {
        let is_ipv4 = socket.local_addr()?.is_ipv4();
        let table = if is_ipv4 { "/proc/self/net/udp" } else { "/proc/self/net/udp6" };
        Ok(SocketInode { number: rustix::fs::fstat(socket)?.st_ino, table })
    }

    /// Datagrams that the kernel dropped because the socket's buffer was full; `None` when it
    /// does not say. Reads a file: nothing for the thread that the datagrams wait for.
    pub(super) fn datagrams_dropped(self) -> Option<u64> {
        // sl local remote st tx:rx tr:tm retrnsmt uid timeout inode ref pointer drops
        let table = std::fs::read_to_string(self.table).ok()?;
        let fields = table.lines().skip(1).map(str::split_ascii_whitespace);
        let inode = |mut row: std::str::SplitAsciiWhitespace<'_>| row.nth(9)?.parse().ok();
        let mut row = fields.into_iter().find(|row| inode(row.clone()) == Some(self.number))?;
        row.nth(12)?.parse().ok()
    }
}

impl ControlSocket {
    /// Makes the buffers of a bound socket, and has the poll report under `token` when there is
    /// something to receive.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn new(
        mut socket: UdpSocket,
        registry: &Registry,
        token: Token,
    ) -> io::Result<ControlSocket> {
        registry.register(&mut socket, token, Interest::READABLE)?;
        let headers = if socket.local_addr()?.is_ipv4() {
            Headers::V4(MultiHeaders::preallocate(BATCH, None))
        } else {
            Headers::V6(MultiHeaders::preallocate(BATCH, None))
        };
        let inbound = Inbound {
            headers,
            buffers: Box::new([[0; RECEIVED_MAX]; BATCH]),
            datagrams: ArrayVec::new(),
        };
        let outbound = Outbound {
            buffers: Box::new([[0; SEALED_MAX]; BATCH]),
            datagrams: ArrayVec::new(),
            done: 0,
            is_blocked: false,
        };
        Ok(ControlSocket { socket, token, inbound, outbound })
    }

    /// Sizes in bytes that the kernel granted, to receive and to send. It counts its own
    /// overhead in, so Linux says twice what was asked for.
    pub(super) fn buffer_sizes(&self) -> io::Result<[usize; 2]> {
        let socket = socket2::SockRef::from(&self.socket);
        Ok([socket.recv_buffer_size()?, socket.send_buffer_size()?])
    }

    /// Receives what is there, as far as it fits a batch; read it with [`ControlSocket::received`].
    /// Returns how many datagrams: with fewer than [`BATCH`], there was nothing more.
    ///
    /// # Errors
    /// What the kernel says, [`io::ErrorKind::WouldBlock`] when nothing is there.
    pub(super) fn receive(&mut self) -> io::Result<usize> {
        let Inbound { headers, buffers, datagrams } = &mut self.inbound;
        let fd = self.socket.as_raw_fd();
        datagrams.clear();
        match headers {
            Headers::V4(headers) => receive(fd, headers, buffers, datagrams)?,
            Headers::V6(headers) => receive(fd, headers, buffers, datagrams)?,
        }
        Ok(datagrams.len())
    }

    /// The `place`-th datagram received last, with its source. One that was longer than
    /// [`SEALED_MAX`] has a byte more than that.
    pub(super) fn received(&mut self, place: usize) -> (SocketAddr, &mut [u8]) {
        let (from, len) = self.inbound.datagrams[place];
        (from, &mut self.inbound.buffers[place][..len])
    }

    /// Where to write the next datagram to send before [`ControlSocket::queue`]; `None` when
    /// there is no room before the next [`ControlSocket::flush`].
    pub(super) fn vacant(&mut self) -> Option<&mut [u8; SEALED_MAX]> {
        self.outbound.buffers.get_mut(self.outbound.datagrams.len())
    }

    /// Queues the first `len` bytes of [`ControlSocket::vacant`]. It was there, or nothing is
    /// queued.
    pub(super) fn queue(&mut self, to: SocketAddr, len: usize) {
        let _ = self.outbound.datagrams.try_push((to.into(), len));
    }

    /// Gives the kernel all that is queued. Returns whether it took it: otherwise its buffer is
    /// full, what it did not take stays queued, and the poll reports when to try again.
    ///
    /// An error stops the kernel at the datagram that it is about, or that was next when there was
    /// an error of an earlier one to report (ICMP); the error itself is lost when others of the
    /// batch went before. So that datagram is tried once more, and given up alone when it fails.
    pub(super) fn flush(&mut self, registry: &Registry, counters: &mut Counters) -> bool {
        let mut stopped = false;
        while self.outbound.done < self.outbound.datagrams.len() {
            match self.outbound.send(&self.socket) {
                Ok(sent) => {
                    self.outbound.done += sent;
                    counters.count_many(Counter::DatagramsSent, sent as u64);
                    if stopped {
                        counters.count(Counter::LateErrors);
                    }
                    stopped = true;
                }
                Err(Errno::AGAIN) => {
                    counters.count(Counter::SendWouldBlock);
                    self.block(true, registry, counters);
                    return false;
                }
                Err(Errno::INTR) => {}
                Err(_) if !stopped => stopped = true,
                Err(_) => {
                    stopped = false;
                    self.outbound.done += 1;
                    counters.count(Counter::SendErrors);
                }
            }
        }
        self.outbound.datagrams.clear();
        self.outbound.done = 0;
        self.block(false, registry, counters);
        true
    }

    /// Whether the kernel's buffer was full at the last [`ControlSocket::flush`].
    pub(super) fn is_blocked(&self) -> bool {
        self.outbound.is_blocked
    }

    /// Asks the poll to report when there is room to send, or no longer. Not at all times: every
    /// datagram that leaves makes room, and each would wake us.
    fn block(&mut self, is_blocked: bool, registry: &Registry, counters: &mut Counters) {
        if self.outbound.is_blocked == is_blocked {
            return;
        }
        let writable = is_blocked.then_some(Interest::WRITABLE);
        let interest = writable.map_or(Interest::READABLE, |w| Interest::READABLE | w);
        match registry.reregister(&mut self.socket, self.token, interest) {
            Ok(()) => self.outbound.is_blocked = is_blocked,
            // Then what is queued waits for the next turn, and this is tried again.
            Err(_) => counters.count(Counter::SendErrors),
        }
    }
}

impl Outbound {
    /// Gives the kernel what is not done. Returns how many datagrams it took.
    fn send(&self, socket: &UdpSocket) -> rustix::io::Result<usize> {
        let (buffers, datagrams) = (&self.buffers[self.done..], &self.datagrams[self.done..]);
        let slices: ArrayVec<_, BATCH> =
            buffers.iter().zip(datagrams).map(|(b, (_, len))| [IoSlice::new(&b[..*len])]).collect();
        let mut controls: ArrayVec<_, BATCH> =
            datagrams.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let messages = datagrams.iter().zip(&slices).zip(&mut controls);
        let mut messages: ArrayVec<_, BATCH> = messages
            .map(|(((to, _), slice), control)| MMsgHdr::new_with_addr(to, slice, control))
            .collect();
        sendmmsg(socket, &mut messages, SendFlags::DONTWAIT)
    }
}

/// Receives into `buffers`, and puts source and length of each datagram into `datagrams`.
fn receive<S: SockaddrLike + Copy + Into<SocketAddr>>(
    fd: RawFd,
    headers: &mut MultiHeaders<S>,
    buffers: &mut [[u8; RECEIVED_MAX]; BATCH],
    datagrams: &mut ArrayVec<(SocketAddr, usize), BATCH>,
) -> nix::Result<()> {
    // The kernel always names the source.
    const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
    let received = recvmmsg(fd, headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
    datagrams.extend(received.map(|message| {
        let from = message.address.map_or(NOBODY, Into::into);
        (from, message.bytes)
    }));
    Ok(())
}

#[cfg(test)]
mod tests;
