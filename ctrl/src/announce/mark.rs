//! What is announced, written down for who comes after this daemon: the next one, which keeps it
//! over a restart, or `holdfastd withdraw`, which ends it. The file is locked for as long as the
//! daemon lives, however it ends. Never read while another has the lock.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Route, Routes};

/// Name of the file.
const NAME: &str = "announced";
/// No mark is longer, in bytes.
const LENGTH_MAX: u64 = 64 * 1024;

/// Why there is no mark.
#[derive(Debug, Error)]
#[error("{}: {error}", path.display())]
pub struct MarkError {
    path: PathBuf,
    error: io::Error,
}

/// The file, locked.
#[derive(Debug)]
pub struct Mark {
    path: PathBuf,
    file: File,
}

#[derive(Serialize, Deserialize)]
struct Line {
    prefix: IpNet,
    route: Option<Route>,
}

impl Mark {
    /// Locks the file in `directory`, and makes both when they are missing; `None` when another
    /// process has it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take(directory: &Path) -> Result<Option<Mark>, MarkError> {
        let path = directory.join(NAME);
        let open = || {
            std::fs::create_dir_all(directory)?;
            File::options().read(true).write(true).create(true).truncate(false).open(&path)
        };
        let file = open().and_then(|file| match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        });
        match file {
            Ok(file) => Ok(file.map(|file| Mark { path, file })),
            Err(error) => Err(MarkError { path, error }),
        }
    }

    /// What was announced when this was last written; `None` when that cannot be told. `None` for a
    /// prefix means the same of it.
    pub fn read(&mut self) -> Option<Routes> {
        let mut text = String::new();
        self.file.rewind().ok()?;
        (&self.file).take(LENGTH_MAX).read_to_string(&mut text).ok()?;
        let lines: Vec<Line> = serde_json::from_str(&text).ok()?;
        Some(lines.into_iter().map(|line| (line.prefix, line.route)).collect())
    }

    /// Writes what is announced.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&mut self, routes: &Routes) -> Result<(), MarkError> {
        let line =
            |(prefix, route): &(IpNet, Option<Route>)| Line { prefix: *prefix, route: *route };
        let lines: Vec<Line> = routes.iter().map(line).collect();
        let mut write = || {
            let mut text = serde_json::to_string(&lines)?;
            text.push('\n');
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.file.write_all(text.as_bytes())
        };
        write().map_err(|error| MarkError { path: self.path.clone(), error })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The mark. What another test starts has a copy of it, until it is another program.
    pub(crate) fn taken(directory: &Path) -> Mark {
        let start = std::time::Instant::now();
        loop {
            if let Some(mark) = Mark::take(directory).unwrap() {
                return mark;
            }
            assert!(start.elapsed().as_secs() < 20, "it is not free");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn routes() -> Routes {
        let routes = [
            ("192.168.0.1/32", Some(Route::Announced)),
            ("192.168.1.0/24", Some(Route::Withdrawn)),
            ("2001:db8::1/128", Some(Route::GracefulShutdown)),
            ("2001:db8::2/128", None),
        ];
        routes.map(|(prefix, route)| (prefix.parse().unwrap(), route)).into()
    }

    #[test]
    fn is_there_for_the_next_one_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut mark = taken(&path);
        assert_eq!(mark.read(), None, "new");
        mark.write(&routes()).unwrap();
        assert!(Mark::take(&path).unwrap().is_none(), "it is taken");
        drop(mark);
        let mut mark = taken(&path);
        assert_eq!(mark.read(), Some(routes()));
        // A shorter one leaves nothing of the longer one behind.
        mark.write(&routes()[..1].to_vec()).unwrap();
        assert_eq!(mark.read(), Some(routes()[..1].to_vec()));
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        for text in [
            "",
            "[",
            "{}",
            "[{\"prefix\":\"x\",\"route\":null}]",
            "[{\"prefix\":\"::/0\",\"route\":\"up\"}]",
        ] {
            std::fs::write(directory.path().join(NAME), text).unwrap();
            let mut mark = taken(directory.path());
            assert_eq!(mark.read(), None, "{text}");
        }
    }

    #[test]
    fn without_a_directory_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Mark::take(&file.join("state")).unwrap_err();
        assert!(error.to_string().contains("file/state/announced: "), "{error}");
    }
}
