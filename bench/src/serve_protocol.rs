//! What `session-load` says to `session-serve` and hears from it: lines of text, and
//! bytes of a [`pattern`](crate::pattern) between them.
//!
//! A request is one line of ASCII, words between single spaces, with LF at its end,
//! at most [`LINE_BYTES_MAX`] long. The answer begins with the line `OK NAME ...`,
//! where NAME is the server's; one connection may carry one request after another.
//! Anything else is answered with `ERROR NAME` and the end of the connection.
//!
//! | request | what follows it | answer |
//! |---|---|---|
//! | `ECHO bytes` | so many bytes | `OK NAME`, the same bytes |
//! | `HALF seed bytes ms` | bytes, then the client's FIN | `OK NAME sha256` of all that came, so many bytes of the seed's pattern over so many milliseconds, FIN |
//! | `CLOSE token seed bytes` | so many bytes of the seed's pattern, after the server's FIN; FIN | `OK NAME`, FIN |
//! | `VERDICT token` | | `OK NAME` and a [`Verdict`] on the CLOSE with that token |
//! | `RESET ms` | nothing | `OK NAME`, RST after so many milliseconds |
//! | `COUNTS` | | `OK NAME` and the server's counters, each `name=value` |

use std::fmt;
use std::str::FromStr;

/// The longest line, with its LF.
pub const LINE_BYTES_MAX: usize = 256;
/// The largest block that is echoed.
pub const ECHO_BYTES_MAX: usize = 1024 * 1024;
/// The most that a client may send after `HALF`.
pub const HALF_SENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The longest token and the longest name, in bytes.
pub const WORD_BYTES_MAX: usize = 64;
/// The longest time that a request may ask for, in milliseconds.
pub const MS_MAX: u64 = 3_600_000;

/// What a client asks for. Sizes are in bytes, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Send a block back.
    Echo {
        /// Its length.
        bytes: usize,
    },
    /// Hash what comes until the client's FIN, then send a paced stream.
    Half {
        /// Of the stream's pattern.
        seed: u64,
        /// Length of the stream.
        bytes: u64,
        /// How long it lasts.
        ms: u64,
    },
    /// Send FIN at once, then check what comes.
    Close {
        /// To ask for the verdict with.
        token: String,
        /// Of the pattern that the client will send.
        seed: u64,
        /// How much of it.
        bytes: u64,
    },
    /// What became of a `Close`?
    Verdict {
        /// Its token.
        token: String,
    },
    /// End the connection with RST.
    Reset {
        /// So long after the request came.
        ms: u64,
    },
    /// The server's counters.
    Counts,
}

impl Request {
    /// The request of a line without its LF; `None`: there is no such request, or it
    /// asks for more than the limits allow.
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        Some(match words[..] {
            ["ECHO", bytes] => Self::Echo { bytes: number(bytes, ECHO_BYTES_MAX)? },
            ["HALF", seed, bytes, ms] => Self::Half {
                seed: number(seed, u64::MAX)?,
                bytes: number(bytes, u64::MAX)?,
                ms: number(ms, MS_MAX)?,
            },
            ["CLOSE", token, seed, bytes] => Self::Close {
                token: word(token)?.to_owned(),
                seed: number(seed, u64::MAX)?,
                bytes: number(bytes, u64::MAX)?,
            },
            ["VERDICT", token] => Self::Verdict { token: word(token)?.to_owned() },
            ["RESET", ms] => Self::Reset { ms: number(ms, MS_MAX)? },
            ["COUNTS"] => Self::Counts,
            _ => return None,
        })
    }
}

impl fmt::Display for Request {
    /// The line, with its LF.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo { bytes } => writeln!(f, "ECHO {bytes}"),
            Self::Half { seed, bytes, ms } => writeln!(f, "HALF {seed} {bytes} {ms}"),
            Self::Close { token, seed, bytes } => writeln!(f, "CLOSE {token} {seed} {bytes}"),
            Self::Verdict { token } => writeln!(f, "VERDICT {token}"),
            Self::Reset { ms } => writeln!(f, "RESET {ms}"),
            Self::Counts => writeln!(f, "COUNTS"),
        }
    }
}

fn number<T: FromStr + PartialOrd>(text: &str, max: T) -> Option<T> {
    text.parse().ok().filter(|number| *number <= max)
}

/// `text`, if it may be a token or a name: letters, digits, `-`, `_` and `.`.
pub fn word(text: &str) -> Option<&str> {
    let fits = (1..=WORD_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    fits.then_some(text)
}

/// What the server found of a session that it half closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte came as it had to, and then the client's FIN.
    Good,
    /// A wrong byte, the wrong length, or no FIN; says which.
    Bad(String),
    /// The session is not at its end.
    Pending,
    /// The server has no such token, or forgot it.
    Unknown,
}

impl Verdict {
    /// The verdict in the rest of an answer.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(' ').unwrap_or((text, "")) {
            ("ok", "") => Some(Self::Good),
            ("bad", what) => Some(Self::Bad(what.to_owned())),
            ("pending", "") => Some(Self::Pending),
            ("unknown", "") => Some(Self::Unknown),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => f.write_str("ok"),
            Self::Bad(what) => write!(f, "bad {what}"),
            Self::Pending => f.write_str("pending"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// The first line of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Who answers.
    pub server: String,
    /// What follows the name; empty for most requests.
    pub rest: String,
}

impl Answer {
    /// The answer of a line without its LF; `None`: it is none, or an error.
    pub fn parse(line: &str) -> Option<Self> {
        let (server, rest) = match line.strip_prefix("OK ")?.split_once(' ') {
            Some((server, rest)) if !rest.is_empty() => (server, rest),
            Some(_) => return None,
            None => (&line[3..], ""),
        };
        Some(Self { server: word(server)?.to_owned(), rest: rest.to_owned() })
    }
}

impl fmt::Display for Answer {
    /// The line, with its LF.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rest.as_str() {
            "" => writeln!(f, "OK {}", self.server),
            rest => writeln!(f, "OK {} {rest}", self.server),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_they_were_written() {
        let token = || "5f-12".to_owned();
        for request in [
            Request::Echo { bytes: ECHO_BYTES_MAX },
            Request::Half { seed: u64::MAX, bytes: 4096, ms: MS_MAX },
            Request::Close { token: token(), seed: 0, bytes: 1 },
            Request::Verdict { token: token() },
            Request::Reset { ms: 0 },
            Request::Counts,
        ] {
            let line = request.to_string();
            assert!(line.len() <= LINE_BYTES_MAX);
            assert_eq!(Request::parse(line.strip_suffix('\n').expect("LF")), Some(request));
        }
        for rest in ["", "ok", "bad 5 bytes"] {
            let answer = Answer { server: "server1".into(), rest: rest.into() };
            let line = answer.to_string();
            assert_eq!(Answer::parse(line.strip_suffix('\n').expect("LF")), Some(answer));
        }
        for verdict in
            [Verdict::Good, Verdict::Bad("a b".into()), Verdict::Pending, Verdict::Unknown]
        {
            assert_eq!(Verdict::parse(&verdict.to_string()), Some(verdict));
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for line in [
            "",
            "ECHO",
            "ECHO -1",
            "ECHO 1048577",
            "ECHO 1 2",
            "ECHO  1",
            "echo 1",
            "HALF 1 2",
            "HALF 1 2 3600001",
            "CLOSE a/b 1 2",
            "CLOSE  1 2",
            "VERDICT ",
            "RESET 18446744073709551616",
            "GET / HTTP/1.1\r",
        ] {
            assert_eq!(Request::parse(line), None, "{line}");
        }
        let long = format!("VERDICT {}", "a".repeat(WORD_BYTES_MAX + 1));
        assert_eq!(Request::parse(&long), None);
        for line in ["", "OK", "OK ", "OK  ok", "OK a ", "ERROR a", "OK a/b"] {
            assert_eq!(Answer::parse(line), None, "{line}");
        }
        for text in ["", "ok 1", "good", "unknown x"] {
            assert_eq!(Verdict::parse(text), None, "{text}");
        }
    }
}
