//! As much HTTP/1.1 as the load needs: a request on a kept connection, a head, a body
//! of known length. It follows nothing.

use crate::connection::Connection;
use crate::report::Failure;

const HEAD_BYTES_MAX: usize = 8 * 1024;

/// What the head of a response says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `X-Server`: who answers.
    pub server: String,
    /// `Content-Length`, in bytes; 0 for a 204, which has none (RFC 9110, section 8.6).
    pub length: u64,
}

impl Connection {
    /// Sends a request without a body.
    pub fn ask(&mut self, path: &str) -> Result<(), Failure> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: service\r\n\r\n").as_bytes())
    }

    /// Reads up to the end of a response's head; its status must be one of `statuses`.
    pub fn read_head(&mut self, statuses: &[u16]) -> Result<Head, Failure> {
        loop {
            let have = self.have();
            if let Some(end) = have.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = parse_head(&have[..end], statuses)?;
                self.take(end + 4);
                return Ok(head);
            }
            if have.len() >= HEAD_BYTES_MAX {
                return Err(Failure::Corrupted("a response's head has no end".into()));
            }
            self.fill()?;
        }
    }
}

fn parse_head(bytes: &[u8], statuses: &[u16]) -> Result<Head, Failure> {
    let corrupted = |what: &str| Failure::Corrupted(format!("{what} in a response's head"));
    let text = std::str::from_utf8(bytes).map_err(|_| corrupted("no text"))?;
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or("");
    let status = line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.split_once(' '))
        .and_then(|(status, _)| status.parse().ok())
        .filter(|status| statuses.contains(status))
        .ok_or_else(|| Failure::Corrupted(format!("status line '{}'", line.escape_debug())))?;
    let (mut server, mut length) = (None, None);
    for line in lines {
        let (name, value) =
            line.split_once(':').ok_or_else(|| corrupted("a line without a colon"))?;
        match name.to_ascii_lowercase().as_str() {
            "x-server" => server = Some(value.trim().to_owned()),
            "content-length" => length = value.trim().parse().ok(),
            _ => {}
        }
    }
    if status == 204 {
        length = Some(0);
    }
    Ok(Head {
        server: server.ok_or_else(|| corrupted("no X-Server"))?,
        length: length.ok_or_else(|| corrupted("no Content-Length"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tests::answered_with;

    #[test]
    fn heads_and_bodies_are_told_apart_wherever_they_are_cut() {
        let mut connection = answered_with(
            "127.0.0.1",
            &[
                b"HTTP/1.1 200 OK\r\nX-Ser",
                b"ver: server3\r\nContent-Length: 5\r\n\r",
                b"\nhel",
                b"loHTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Server: server4\r\n\r\n",
            ],
        );
        let head = connection.read_head(&[200]).expect("a head");
        assert_eq!(head, Head { server: "server3".into(), length: 5 });
        let mut body = Vec::new();
        while body.len() < 5 {
            let left = 5 - body.len() as u64;
            body.extend_from_slice(connection.read_piece(left).expect("a piece"));
        }
        assert_eq!(body, b"hello");
        assert_eq!(connection.read_head(&[200]).expect("another head").server, "server4");
        connection.expect_nothing_more().expect("nothing more");
        assert_eq!(connection.read_head(&[200]), Err(Failure::Closed));
    }

    #[test]
    fn what_is_no_good_answer_is_corruption() {
        for head in [
            "HTTP/1.1 404 Not Found\r\nX-Server: a\r\nContent-Length: 0",
            "HTTP/1.1 204 No Content\r\nX-Server: a\r\nContent-Length: 0",
            "HTTP/1.1 200 OK\r\nX-Server: a",
            "x",
        ] {
            let result = parse_head(head.as_bytes(), &[200]);
            assert!(matches!(result, Err(Failure::Corrupted(_))), "{head}");
        }
    }

    #[test]
    fn answers_to_an_upload_have_no_body() {
        let head = "HTTP/1.1 204 No Content\r\nX-Server: a";
        let expected = Head { server: "a".into(), length: 0 };
        assert_eq!(parse_head(head.as_bytes(), &[201, 204]), Ok(expected.clone()));
        let head = "HTTP/1.1 201 Created\r\nX-Server: a\r\nContent-Length: 0";
        assert_eq!(parse_head(head.as_bytes(), &[201, 204]), Ok(expected));
    }
}
