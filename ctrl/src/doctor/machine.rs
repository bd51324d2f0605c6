//! The files and programs that tell what a server is like. Never judges.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A server, as its files below a folder show it.
#[derive(Debug)]
pub(super) struct Machine {
    root: PathBuf,
}

impl Machine {
    pub fn new(root: &Path) -> Machine {
        Machine { root: root.to_owned() }
    }

    /// Where a file is; `path` begins without a slash.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A file's text without the space around it; empty when it cannot be read.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_default().trim().to_owned()
    }

    /// The number that is all of a file.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.read(path).parse().ok()
    }

    /// The CPUs in a list such as `0-3,8`.
    pub fn cpus(&self, path: &str) -> Vec<u16> {
        cpus(&self.read(path))
    }

    /// Names in a folder, sorted; none when there is no folder.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The last part of what a symbolic link points to.
    pub fn link(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// A value of `/proc/meminfo`.
    pub fn meminfo(&self, key: &str) -> u64 {
        let text = self.read("proc/meminfo");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// Process numbers of the daemons that run.
    pub fn daemons(&self) -> Vec<String> {
        let mut processes = self.names("proc");
        processes.retain(|name| {
            name.bytes().all(|byte| byte.is_ascii_digit())
                && self.read(&format!("proc/{name}/comm")) == "holdfastd"
        });
        processes
    }

    /// What a program says; `None` when it is not there or fails.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let output = Command::new(program).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn cpus(list: &str) -> Vec<u16> {
    let ranges = list.split(',').filter_map(|range| {
        let (first, last) = range.trim().split_once('-').unwrap_or((range.trim(), range.trim()));
        Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_of_cpus() {
        let rows: [(&str, &[u16]); 5] = [
            ("", &[]),
            ("0", &[0]),
            ("0-3,8", &[0, 1, 2, 3, 8]),
            ("2-3,6-7", &[2, 3, 6, 7]),
            ("x,5", &[5]),
        ];
        for (text, expected) in rows {
            assert_eq!(cpus(text), expected, "{text}");
        }
    }
}
