//! TCP sessions from one namespace to another. A read that nothing ends fails after [`PATIENCE`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::PATIENCE;
use super::namespace::Namespace;

/// The service's socket on its server.
pub fn listen(server: &Namespace, service: SocketAddr) -> TcpListener {
    server.inside(|| TcpListener::bind(service).unwrap())
}

/// A session with a service: the client's end and the server's.
#[track_caller]
pub fn open(client: &Namespace, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let service = listener.local_addr().unwrap();
    let connected = client.inside(|| TcpStream::connect_timeout(&service, PATIENCE));
    let client = connected.expect("the service is reached");
    let (accepted, _) = listener.accept().unwrap();
    for end in [&client, &accepted] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (client, accepted)
}

/// What the client sends comes back.
#[track_caller]
pub fn echo(client: &mut TcpStream, accepted: &mut TcpStream) {
    let mut bytes = [0; 4];
    client.write_all(b"ping").unwrap();
    accepted.read_exact(&mut bytes).expect("it comes to the server");
    accepted.write_all(&bytes).unwrap();
    client.read_exact(&mut bytes).expect("it comes back");
    assert_eq!(&bytes, b"ping");
}
