//! Whether the threads that poll had their CPUs: how long they ran, and how long others ran in
//! their place. Without it a figure of a shared machine says nothing. Never changes a priority.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The kernel's clock ticks of `/proc/stat`, in nanoseconds.
const TICK_NS: u64 = 10_000_000;

/// Times since the start of the threads, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Time on a CPU.
    pub ran: u64,
    /// Time in which it wanted to run and another thread did.
    pub waited: u64,
}

/// What is watched.
#[derive(Debug)]
pub struct Threads {
    worker: PathBuf,
}

/// A reading.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    worker: Times,
    generator: Times,
    /// Time that the hypervisor gave to others, all CPUs together.
    stolen: u64,
}

impl Threads {
    /// The first worker of the daemon `pid`, and the calling thread.
    ///
    /// # Errors
    /// When it has no such thread, or the kernel keeps no times.
    pub fn of_daemon(pid: u64) -> Result<Threads> {
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        for task in fs::read_dir(&tasks).with_context(|| tasks.display().to_string())? {
            let task = task?.path();
            // A thread may end meanwhile.
            let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
            if name.starts_with("worker") {
                return Ok(Threads { worker: task.join("schedstat") });
            }
        }
        anyhow::bail!("process {pid} has no worker")
    }

    /// The times now.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn read(&self) -> Result<Reading> {
        Ok(Reading {
            worker: times(&self.worker)?,
            generator: times(Path::new("/proc/thread-self/schedstat"))?,
            stolen: stolen(&fs::read_to_string("/proc/stat")?) * TICK_NS,
        })
    }
}

impl Reading {
    /// What passed since `before`, in percent of `seconds`.
    pub fn since(&self, before: &Reading, seconds: f64) -> Value {
        let percent = |now: u64, then: u64| {
            let share = now.saturating_sub(then) as f64 / (seconds * 1e9) * 100.0;
            (share * 100.0).round() / 100.0
        };
        json!({
            "worker_ran": percent(self.worker.ran, before.worker.ran),
            "worker_waited": percent(self.worker.waited, before.worker.waited),
            "generator_ran": percent(self.generator.ran, before.generator.ran),
            "generator_waited": percent(self.generator.waited, before.generator.waited),
            "stolen_by_hypervisor": percent(self.stolen, before.stolen),
        })
    }
}

fn times(path: &Path) -> Result<Times> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text)
}

/// `RAN WAITED SLICES`, in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn parse(schedstat: &str) -> Result<Times> {
    let mut fields = schedstat.split_whitespace().map(str::parse);
    let (ran, waited) = (fields.next(), fields.next());
    ensure!(ran.is_some() && waited.is_some(), "'{schedstat}' is no schedstat");
    let value = |field: Option<Result<u64, _>>| field.transpose().map(Option::unwrap_or_default);
    Ok(Times { ran: value(ran)?, waited: value(waited)? })
}

/// The eighth time of the line of all CPUs (proc(5)); 0 when there is none.
fn stolen(stat: &str) -> u64 {
    let all = stat.lines().find(|line| line.starts_with("cpu ")).unwrap_or_default();
    all.split_whitespace().nth(8).and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_texts_are_read() {
        assert_eq!(
            parse("153207 240300 2\n").expect("sound"),
            Times { ran: 153_207, waited: 240_300 }
        );
        assert!(parse("153207").is_err());
        assert!(parse("a b c").is_err());
        assert_eq!(stolen("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 80 9 10\n"), 8);
        assert_eq!(stolen(""), 0);
    }

    #[test]
    fn shares_are_percent_of_the_time() {
        let reading = |ran, waited| Reading {
            worker: Times { ran, waited },
            generator: Times::default(),
            stolen: 0,
        };
        let json = reading(1_500_000_000, 600_000_000).since(&reading(0, 100_000_000), 2.0);
        assert_eq!(json["worker_ran"], 75.0);
        assert_eq!(json["worker_waited"], 25.0);
        assert_eq!(json["generator_waited"], 0.0);
    }
}
