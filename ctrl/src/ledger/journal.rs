//! The journal of incidents that are over: bounded in memory and, when it has a file, there too, so
//! that they survive a restart. Never trusts the file: what cannot be read is set aside.
//!
//! The file has one JSON object a line, the oldest first: an incident as the control socket shows
//! it, and the version of this form.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::protocol::Incident;

/// Version of the file's lines.
const VERSION: u64 = 1;
/// A greater file is none of ours.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// A longer line is none of ours.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// The last incidents, the oldest first.
#[derive(Debug)]
pub struct Journal {
    kept: VecDeque<Incident>,
    keep: usize,
    file: Option<JournalFile>,
}

#[derive(Debug)]
struct JournalFile {
    path: PathBuf,
    lines: usize,
    bytes: u64,
}

/// A file that could not be read was set aside.
#[derive(Debug, PartialEq, Eq)]
pub struct SetAside {
    /// What is wrong with it.
    pub why: String,
    /// Where it is now.
    pub path: PathBuf,
    /// Incidents in it that could be read: they are in the new file.
    pub read: usize,
}

#[derive(Serialize)]
struct Line<'a> {
    version: u64,
    incident: &'a Incident,
}

#[derive(Deserialize)]
struct OwnedLine {
    version: u64,
    incident: Incident,
}

impl Journal {
    /// A journal of the last `keep` incidents in memory.
    #[must_use]
    pub fn in_memory(keep: usize) -> Journal {
        Journal { kept: VecDeque::new(), keep, file: None }
    }

    /// The same, and in the file `path`. What is there is read; its directory is made when it is
    /// missing. What of the file was not understood is told, and where that is now.
    ///
    /// # Errors
    /// When the file can be neither read nor written, or is no file.
    pub fn open(path: &Path, keep: usize) -> io::Result<(Journal, Option<SetAside>)> {
        if let Some(directory) = path.parent().filter(|parent| !parent.exists()) {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let file = JournalFile { path: path.to_owned(), lines: 0, bytes: 0 };
        let mut journal = Journal { kept: VecDeque::new(), keep, file: Some(file) };
        let fault = journal.read(path)?;
        let set_aside = match fault {
            None => None,
            Some(why) => {
                let aside = with_suffix(path, ".corrupt");
                std::fs::rename(path, &aside)?;
                Some(SetAside { why, path: aside, read: journal.kept.len() })
            }
        };
        // Also finds out at once whether it can be written.
        journal.rewrite()?;
        Ok((journal, set_aside))
    }

    /// Reads what is there; returns what is wrong with it.
    fn read(&mut self, path: &Path) -> io::Result<Option<String>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Ok(Some(format!("is greater than {} MiB", FILE_BYTES_MAX >> 20)));
        }
        let mut reader = BufReader::new(file.take(FILE_BYTES_MAX));
        let mut fault = None;
        for number in 1.. {
            let mut line = Vec::new();
            if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            match parse(&line) {
                Ok(incident) => self.remember(incident),
                // The first one says enough.
                Err(why) => fault = fault.or(Some(format!("line {number}: {why}"))),
            }
        }
        Ok(fault)
    }

    fn remember(&mut self, incident: Incident) {
        if self.kept.len() == self.keep {
            self.kept.pop_front();
        }
        self.kept.push_back(incident);
    }

    /// Keeps an incident, in memory in any case.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, incident: Incident) -> io::Result<()> {
        let line = line(&incident);
        self.remember(incident);
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let is_full = file.lines >= 2 * self.keep
            || file.bytes.saturating_add(line.len() as u64) > FILE_BYTES_MAX;
        if is_full {
            return self.rewrite();
        }
        let appended = file.append(&line);
        if appended.is_err() {
            // Half a line may be there now.
            file.lines = usize::MAX;
        }
        appended
    }

    /// Writes the file anew, with what is kept.
    fn rewrite(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let new = with_suffix(&file.path, ".new");
        let (mut lines, mut bytes) = (Vec::new(), 0);
        // The newest of them, as far as there is room.
        for incident in self.kept.iter().rev() {
            let line = line(incident);
            bytes += line.len() as u64;
            if bytes > FILE_BYTES_MAX / 2 {
                break;
            }
            lines.push(line);
        }
        let mut to =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
        for line in lines.iter().rev() {
            to.write_all(line)?;
        }
        to.sync_data()?;
        std::fs::rename(&new, &file.path)?;
        file.lines = lines.len();
        file.bytes = lines.iter().map(|line| line.len() as u64).sum();
        Ok(())
    }

    /// The incidents, the newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Incident> {
        self.kept.iter().rev()
    }

    /// The incident with this id.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&Incident> {
        self.kept.iter().rev().find(|incident| incident.id == id)
    }

    /// An id greater than all that are kept; from 1.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        self.kept.iter().map(|incident| incident.id).max().unwrap_or(0).saturating_add(1)
    }
}

impl JournalFile {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
        file.write_all(line)?;
        file.sync_data()?;
        self.lines += 1;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

fn parse(line: &[u8]) -> Result<Incident, String> {
    let Some(line) = line.strip_suffix(b"\n") else {
        return Err("does not end".to_owned());
    };
    let OwnedLine { version, incident } =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("is of version {version}, not {VERSION}"));
    }
    Ok(incident)
}

fn line(incident: &Incident) -> Vec<u8> {
    // Numbers and texts always have a form in JSON; an empty line would be one that is set aside.
    let mut line = serde_json::to_vec(&Line { version: VERSION, incident }).unwrap_or_default();
    line.push(b'\n');
    line
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn incident(id: u64) -> Incident {
        super::super::tests::incident(id)
    }

    fn ids(journal: &Journal) -> Vec<u64> {
        journal.newest().map(|incident| incident.id).collect()
    }

    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            Place { directory: tempfile::tempdir().unwrap() }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("state/incidents.jsonl")
        }

        fn open(&self, keep: usize) -> (Journal, Option<SetAside>) {
            Journal::open(&self.path(), keep).unwrap()
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.path()).unwrap()
        }
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart() {
        let place = Place::new();
        let (mut journal, set_aside) = place.open(8);
        assert_eq!((set_aside, journal.next_id()), (None, 1));
        for id in 1..4 {
            journal.push(incident(id)).unwrap();
        }
        let mode = std::fs::metadata(place.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "others need not know the flows");
        let (journal, set_aside) = place.open(8);
        assert_eq!((set_aside, ids(&journal), journal.next_id()), (None, vec![3, 2, 1], 4));
        assert_eq!(journal.get(2), Some(&incident(2)));
        assert_eq!(journal.get(4), None);
    }

    #[test]
    fn memory_and_file_are_bounded() {
        let place = Place::new();
        let (mut journal, _) = place.open(3);
        for id in 1..=50 {
            journal.push(incident(id)).unwrap();
            assert!(place.text().lines().count() <= 6, "after {id}");
        }
        assert_eq!(ids(&journal), [50, 49, 48]);
        assert_eq!(ids(&place.open(3).0), [50, 49, 48]);
        assert_eq!(place.text().lines().count(), 3, "a restart leaves the last ones");
    }

    #[test]
    fn a_corrupt_file_is_set_aside_and_what_can_be_read_goes_on() {
        let place = Place::new();
        let (mut journal, _) = place.open(8);
        for id in 1..4 {
            journal.push(incident(id)).unwrap();
        }
        let good = place.text();
        let second = good.lines().nth(1).unwrap();
        let rows = [
            (
                good.replace(second, "{\"version\":1}"),
                "line 2: missing field `incident`",
                vec![3, 1],
            ),
            (good.replace(second, "\u{0}\u{0}"), "line 2: expected value", vec![3, 1]),
            (good[..good.len() - 9].to_owned(), "line 3: does not end", vec![2, 1]),
            (
                good.replacen("\"version\":1", "\"version\":2", 1),
                "line 1: is of version 2",
                vec![3, 2],
            ),
            ("x".repeat(3 << 20), "line 1: does not end", vec![]),
        ];
        for (text, why, left) in rows {
            std::fs::write(place.path(), &text).unwrap();
            let (journal, set_aside) = place.open(8);
            let set_aside = set_aside.unwrap();
            assert!(set_aside.why.starts_with(why), "{}", set_aside.why);
            assert_eq!((ids(&journal), set_aside.read), (left.clone(), left.len()));
            assert_eq!(std::fs::read_to_string(&set_aside.path).unwrap(), text);
            assert_eq!(place.open(8).1, None, "the new one is sound");
        }
    }

    #[test]
    fn what_is_too_great_is_set_aside_unread() {
        let place = Place::new();
        place.open(8);
        File::options()
            .write(true)
            .open(place.path())
            .unwrap()
            .set_len(FILE_BYTES_MAX + 1)
            .unwrap();
        let (journal, set_aside) = place.open(8);
        assert_eq!(
            (ids(&journal), set_aside.unwrap().why.as_str()),
            (vec![], "is greater than 64 MiB")
        );
    }

    #[test]
    fn what_is_no_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Journal::open(directory.path(), 8).is_err());
        assert!(Journal::open(Path::new("/dev/null"), 8).is_err());
        assert!(Journal::open(Path::new("/proc/no/such/place"), 8).is_err());
    }

    #[test]
    fn what_cannot_be_written_is_kept_in_memory() {
        let place = Place::new();
        let (mut journal, _) = place.open(8);
        std::fs::remove_dir_all(place.path().parent().unwrap()).unwrap();
        assert!(journal.push(incident(1)).is_err());
        assert_eq!(ids(&journal), [1]);
        std::fs::create_dir(place.path().parent().unwrap()).unwrap();
        journal.push(incident(2)).unwrap();
        assert_eq!(ids(&place.open(8).0), [2, 1], "written as soon as that is possible");
    }
}
