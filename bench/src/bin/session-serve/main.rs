//! `session-serve`: the server's side of the sessions of `session-load` that a web
//! server does not have: echoes, connections that are closed in one direction only,
//! and resets. Sockets of the kernel, one thread per connection; it ends by SIGTERM.
//! Its protocol: [`holdfast_bench::serve_protocol`].

#![forbid(unsafe_code)]

mod session;
mod verdicts;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use holdfast_bench::serve_protocol;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use session::Server;
use verdicts::Verdicts;

/// A connection's thread needs no more: its buffers are on the heap.
const STACK_BYTES: usize = 128 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
const VERDICTS_MAX: usize = 16 * 1024;
/// When no connection can be accepted: until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the echo, half-close, host-close and reset sessions of session-load.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address and port to listen at, e.g. `192.168.0.1:9000` or `[::1]:9000`; may be repeated
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// Name in every answer; each server of a service needs its own
    #[arg(long, default_value = "server")]
    name: String,
    /// Connections open at a time; one more is closed at once
    #[arg(long, default_value_t = 4096)]
    connections_max: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        serve_protocol::word(&args.name).is_some(),
        "--name: 1 to {} letters, digits, '-', '_', '.', not '{}'",
        serve_protocol::WORD_BYTES_MAX,
        args.name
    );
    let listeners = args
        .listen
        .iter()
        .map(|address| listen(*address).with_context(|| format!("cannot listen at {address}")))
        .collect::<Result<Vec<_>>>()?;
    let server = Arc::new(Server {
        name: args.name,
        verdicts: Verdicts::new(VERDICTS_MAX),
        open: AtomicUsize::new(0),
        accepted: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        bad_requests: AtomicU64::new(0),
        resets: AtomicU64::new(0),
    });
    print_listening(&server.name, &listeners)?;
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| accept_all(listener, &server, args.connections_max));
        }
    });
    Ok(())
}

/// An IPv6 socket leaves IPv4 alone, so that both may listen at one port.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn print_listening(name: &str, listeners: &[TcpListener]) -> Result<()> {
    let addresses = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()))
        .collect::<io::Result<Vec<_>>>()?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", json!({"event": "listening", "name": name, "addresses": addresses}))
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

fn accept_all(listener: &TcpListener, server: &Arc<Server>, connections_max: usize) {
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // No file descriptor is left, or the client is gone already.
            thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        if server.open.fetch_add(1, Ordering::Relaxed) >= connections_max {
            server.open.fetch_sub(1, Ordering::Relaxed);
            server.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        server.accepted.fetch_add(1, Ordering::Relaxed);
        let own = Arc::clone(server);
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // Why a connection ended is the client's to say.
            let _ = own.serve(&stream);
            own.open.fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            server.open.fetch_sub(1, Ordering::Relaxed);
            server.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}
