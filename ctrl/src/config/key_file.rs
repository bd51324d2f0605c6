//! Reads the cluster's key file. Never shows what is in it: errors name lines, and `Debug` of a
//! secret prints none of it.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use thiserror::Error;

/// Largest key file that is read, in bytes.
const FILE_MAX: u64 = 4096;

/// 32 secret bytes. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A key of the cluster and the id that datagrams name it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKey {
    /// Its id.
    pub id: u8,
    /// The key itself.
    pub secret: Secret,
}

/// The secrets that all members of a cluster share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKeys {
    /// The first key: seals and opens.
    pub sealing: ClusterKey,
    /// The second key, if there is one: opens. Of another id, and not the same.
    pub opening: Option<ClusterKey>,
    /// What the places of records are derived from: the `ids` line, else the only key.
    pub ids: Secret,
}

/// Why a key file is refused. Lines count from 1.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] std::io::Error),
    /// A directory or a device.
    #[error("expected a file with 64 hexadecimal digits")]
    NoFile,
    /// Too many may read or write it.
    #[error(
        "has mode {0:04o}: expected at most 0640, for others may not read it, nor anyone but its \
         owner write it"
    )]
    Mode(u32),
    /// More than [`FILE_MAX`] bytes.
    #[error("expected at most {FILE_MAX} bytes")]
    TooLong,
    /// No key in it.
    #[error("expected 64 hexadecimal digits, as `openssl rand -hex 32` prints them")]
    Empty,
    /// A line that is none of the known ones.
    #[error(
        "line {0}: expected 64 hexadecimal digits, as `openssl rand -hex 32` prints them, alone \
         or behind the key's id from 0 to 255 or behind the word `ids`"
    )]
    NoKey(usize),
    /// A key that everybody knows.
    #[error("line {0}: expected a random key, as `openssl rand -hex 32` prints it, not zeros")]
    Zeros(usize),
    /// Three keys.
    #[error("line {0}: expected at most two keys, the one that seals and one that opens as well")]
    ThirdKey(usize),
    /// Two keys of one id.
    #[error("line {line}: expected another id than {id}, which is the first key's")]
    SameId {
        /// The second key's line.
        line: usize,
        /// The id.
        id: u8,
    },
    /// One key twice.
    #[error("line {0}: expected another key than the first one")]
    SameKey(usize),
    /// A second `ids` line.
    #[error("line {0}: expected one `ids` line at most")]
    SecondIds(usize),
    /// Two keys and no `ids` line.
    #[error(
        "two keys need a line `ids` and 64 hexadecimal digits, the same on every member for good: \
         to keep the records where they are, repeat there the key that was alone before"
    )]
    NoIds,
}

impl ClusterKeys {
    /// Reads and checks a key file.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn load(path: &Path) -> Result<ClusterKeys, KeyFileError> {
        let file = std::fs::File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(KeyFileError::NoFile);
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o027 != 0 {
            return Err(KeyFileError::Mode(mode));
        }
        let mut text = String::new();
        if file.take(FILE_MAX + 1).read_to_string(&mut text)? as u64 > FILE_MAX {
            return Err(KeyFileError::TooLong);
        }
        ClusterKeys::parse(&text)
    }

    /// Checks the text of a key file.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn parse(text: &str) -> Result<ClusterKeys, KeyFileError> {
        let (mut sealing, mut opening, mut ids) = (None, None, None);
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.split('#').next().unwrap_or_default().trim();
            if text.is_empty() {
                continue;
            }
            let (name, secret) = parse_line(line, text)?;
            match (name, &sealing) {
                (Name::Ids, _) if ids.is_some() => return Err(KeyFileError::SecondIds(line)),
                (Name::Ids, _) => ids = Some(secret),
                (Name::Key(id), None) => sealing = Some(ClusterKey { id, secret }),
                (Name::Key(_), _) if opening.is_some() => return Err(KeyFileError::ThirdKey(line)),
                (Name::Key(id), Some(first)) if first.id == id => {
                    return Err(KeyFileError::SameId { line, id });
                }
                (Name::Key(_), Some(first)) if first.secret == secret => {
                    return Err(KeyFileError::SameKey(line));
                }
                (Name::Key(id), _) => opening = Some(ClusterKey { id, secret }),
            }
        }
        let sealing = sealing.ok_or(KeyFileError::Empty)?;
        let ids = match (ids, &opening) {
            (Some(ids), _) => ids,
            (None, None) => sealing.secret.clone(),
            (None, Some(_)) => return Err(KeyFileError::NoIds),
        };
        Ok(ClusterKeys { sealing, opening, ids })
    }
}

enum Name {
    Key(u8),
    Ids,
}

/// A line without its comment: a key with or without an id, or `ids`.
fn parse_line(line: usize, text: &str) -> Result<(Name, Secret), KeyFileError> {
    let no_key = || KeyFileError::NoKey(line);
    let words: Vec<&str> = text.split_whitespace().collect();
    let (name, digits) = match words[..] {
        [digits] => (Name::Key(0), digits),
        ["ids", digits] => (Name::Ids, digits),
        // `parse` alone would take a sign.
        [id, digits] if id.bytes().all(|byte| byte.is_ascii_digit()) => {
            (Name::Key(id.parse().map_err(|_| no_key())?), digits)
        }
        _ => return Err(no_key()),
    };
    let secret = parse_secret(digits).ok_or_else(no_key)?;
    if secret.0 == [0; 32] {
        return Err(KeyFileError::Zeros(line));
    }
    Ok((name, secret))
}

fn parse_secret(text: &str) -> Option<Secret> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut secret = [0; 32];
    for (index, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(Secret(secret))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn digits(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    fn key(id: u8, byte: u8) -> ClusterKey {
        ClusterKey { id, secret: Secret([byte; 32]) }
    }

    #[test]
    fn one_key_needs_no_more() {
        for text in [digits(0xab), format!("# ours\n\n 0 {} # made in May\n", digits(0xab))] {
            let keys = ClusterKeys::parse(&text).unwrap();
            let ids = Secret([0xab; 32]);
            assert_eq!(keys, ClusterKeys { sealing: key(0, 0xab), opening: None, ids });
        }
    }

    #[test]
    fn the_first_of_two_keys_seals_and_the_ids_line_stays() {
        let [old, new, ids] = [1, 2, 3].map(digits);
        let text = format!("{old}\n255 {new}\nids {ids}");
        let keys = ClusterKeys::parse(&text).unwrap();
        assert_eq!((keys.sealing.id, keys.opening.clone()), (0, Some(key(255, 2))));
        let text = format!("ids {ids}\n255 {new}\n0 {old}");
        let swapped = ClusterKeys::parse(&text).unwrap();
        assert_eq!((swapped.sealing, swapped.opening), (key(255, 2), Some(key(0, 1))));
        assert_eq!(swapped.ids, keys.ids);
        // The key that was alone keeps the records where they were.
        let alone = ClusterKeys::parse(&old).unwrap();
        let text = format!("{old}\n1 {new}\nids {old}");
        assert_eq!(ClusterKeys::parse(&text).unwrap().ids, alone.ids);
    }

    #[test]
    fn refuses_what_is_no_key_file_and_never_shows_it() {
        let [a, b, c] = [0xaa, 0xbb, 0xcc].map(digits);
        let zeros = digits(0);
        for (text, expected) in [
            (String::new(), "expected 64 hexadecimal digits"),
            ("# nothing".to_owned(), "expected 64 hexadecimal digits"),
            (format!("ids {a}"), "expected 64 hexadecimal digits"),
            (format!("{a}\nx {b}"), "line 2: expected 64 hexadecimal digits"),
            (format!("256 {a}"), "line 1: expected 64"),
            (format!("+1 {a}"), "line 1: expected 64"),
            (format!("1 {a} {b}"), "line 1: expected 64"),
            (format!("1 {a}0"), "line 1: expected 64"),
            (zeros, "line 1: expected a random key"),
            (format!("{a}\n0 {b}\nids {c}"), "line 2: expected another id than 0"),
            (format!("{a}\n1 {a}\nids {c}"), "line 2: expected another key"),
            (format!("{a}\n1 {b}\n2 {c}\nids {c}"), "line 3: expected at most two keys"),
            (format!("{a}\nids {b}\nids {c}"), "line 3: expected one `ids` line"),
            (format!("{a}\n1 {b}"), "two keys need a line `ids`"),
        ] {
            let error = ClusterKeys::parse(&text).expect_err("refused").to_string();
            assert!(error.contains(expected), "{text}: {error}");
            for digits in [&a, &b, &c] {
                assert!(!error.contains(&digits[..8]), "{error}");
            }
        }
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let keys = ClusterKeys::parse(&digits(0xab)).unwrap();
        let shown = format!("{keys:?}");
        assert!(shown.contains("Secret(…)") && !shown.contains("ab"), "{shown}");
        assert!(!shown.contains("171"), "{shown}");
    }
}
