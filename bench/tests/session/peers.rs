//! What stands at the other end in the tests: a small web server, and a proxy that
//! does what a network must not do.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

fn listen(ip: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip, 0)).expect("a listener");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

fn each_connection(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.expect("a connection"), Arc::clone(&serve));
            thread::spawn(move || serve(stream));
        }
    });
}

/// How many connections to the web server ended in which way.
#[derive(Default)]
pub struct Endings {
    pub client_fin: AtomicUsize,
    pub server_fin: AtomicUsize,
    pub client_reset: AtomicUsize,
}

/// As much of the lab's nginx as session-load uses. `spoil` changes what is stored.
pub fn web_server(ip: IpAddr, spoil: fn(&mut Vec<u8>)) -> (SocketAddr, Arc<Endings>) {
    let (listener, address) = listen(ip);
    let endings = Arc::new(Endings::default());
    let counted = Arc::clone(&endings);
    let files = Mutex::new(HashMap::new());
    each_connection(listener, move |stream| {
        let count = match answer_all(&stream, &files, spoil) {
            Ok(true) => &counted.client_fin,
            Ok(false) => &counted.server_fin,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => &counted.client_reset,
            Err(error) => panic!("the web server: {error}"),
        };
        count.fetch_add(1, Ordering::Relaxed);
    });
    (address, endings)
}

/// `true`: the client's FIN came first.
fn answer_all(
    mut stream: &TcpStream,
    files: &Mutex<HashMap<String, Vec<u8>>>,
    spoil: fn(&mut Vec<u8>),
) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut request, mut length, mut close) = (String::new(), 0, false);
        if reader.read_line(&mut request)? == 0 {
            return Ok(true);
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().expect("a length"),
                Some(("Connection", "close")) => close = true,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = request.split(' ');
        let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
        let (status, body) = match (method, path.strip_prefix("/?id=")) {
            ("GET", Some(id)) => ("200 OK", format!("holdfast lab {id}\n").into_bytes()),
            ("GET", None) => {
                ("200 OK", files.lock().expect("the files").get(path).expect("a file").clone())
            }
            _ => {
                spoil(&mut body);
                match files.lock().expect("the files").insert(path.to_owned(), body) {
                    None => ("201 Created", Vec::new()),
                    Some(_) => ("204 No Content", Vec::new()),
                }
            }
        };
        let length = match status {
            "204 No Content" => String::new(),
            _ => format!("Content-Length: {}\r\n", body.len()),
        };
        let mut answer = format!("HTTP/1.1 {status}\r\nX-Server: web\r\n{length}\r\n").into_bytes();
        answer.extend_from_slice(&body);
        stream.write_all(&answer)?;
        if close {
            return Ok(false);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
}

/// What the proxy does to every connection.
#[derive(Clone, Copy)]
pub enum Fault {
    /// Changes the byte number so many of that way.
    Flip(Way, usize),
    /// Leaves out that byte.
    Lose(Way, usize),
    /// Ends the client's connection by FIN after exactly so many bytes down.
    CutByFin(usize),
    /// The same by RST.
    CutByReset(usize),
    /// Loses the server's RST.
    LoseReset,
    /// Nothing.
    None,
}

/// Listens, and passes each connection on to `target` with the fault.
pub fn proxy(target: SocketAddr, fault: Fault) -> SocketAddr {
    proxy_in_turn(vec![target], fault)
}

/// Passes one connection after another on to the next one of `targets`.
pub fn proxy_in_turn(targets: Vec<SocketAddr>, fault: Fault) -> SocketAddr {
    let (listener, address) = listen(targets[0].ip());
    let turn = AtomicUsize::new(0);
    each_connection(listener, move |client| {
        let target = targets[turn.fetch_add(1, Ordering::Relaxed) % targets.len()];
        let server = Arc::new(TcpStream::connect(target).expect("the target"));
        let client = Arc::new(client);
        let (from, to) = (Arc::clone(&client), Arc::clone(&server));
        let up = thread::spawn(move || pass(&from, &to, Way::Up, fault));
        pass(&server, &client, Way::Down, fault);
        drop(server);
        drop(client);
        up.join().expect("the way up");
    });
    address
}

/// Copies until the end of `from`, and hands FIN and RST on.
fn pass(mut from: &TcpStream, mut to: &TcpStream, way: Way, fault: Fault) {
    let (mut buffer, mut passed) = (vec![0; 4096], 0);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) if count > 0 => count,
            Ok(_) => return end(to, Shutdown::Write),
            Err(_) if way == Way::Down && matches!(fault, Fault::LoseReset) => return,
            Err(_) => return end_by_reset(to),
        };
        let mut bytes = buffer[..count].to_vec();
        let place = |at: usize| at.checked_sub(passed).filter(|place| *place < count);
        match fault {
            Fault::Flip(faulty, at) if faulty == way => {
                if let Some(place) = place(at) {
                    bytes[place] ^= 1;
                }
            }
            Fault::Lose(faulty, at) if faulty == way => {
                if let Some(place) = place(at) {
                    bytes.remove(place);
                }
            }
            Fault::CutByFin(at) | Fault::CutByReset(at) if way == Way::Down => {
                bytes.truncate(at - passed);
            }
            _ => {}
        }
        passed += count;
        if to.write_all(&bytes).is_err() {
            return end_by_reset(from);
        }
        match fault {
            Fault::CutByFin(at) if way == Way::Down && passed >= at => {
                return end(to, Shutdown::Both);
            }
            Fault::CutByReset(at) if way == Way::Down && passed >= at => {
                return end_by_reset(to);
            }
            _ => {}
        }
    }
}

fn end(stream: &TcpStream, how: Shutdown) {
    // The other end may have gone before.
    let _ = stream.shutdown(how);
}

/// RST goes out when both ways have let go of the socket: the end of its reading
/// wakes the other one.
fn end_by_reset(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("an option");
    end(stream, Shutdown::Read);
}
