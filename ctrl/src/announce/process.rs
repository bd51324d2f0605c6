//! Runs a program to its end, with a limit on its time and on what is kept of its output. Never
//! leaves one behind.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use thiserror::Error;

use super::TURN;

/// Bytes of output that are kept: the first.
const OUTPUT_MAX: usize = 4096;

/// Why a program did not do what it should.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// It cannot be started.
    #[error("cannot start {program}: {error}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// It ended with an error.
    #[error("{program}: {said} ({status})")]
    Failed {
        /// The program.
        program: String,
        /// The last line that it printed.
        said: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It did not end in time, and was killed.
    #[error("{program} did not end within {timeout:?}")]
    TimedOut {
        /// The program.
        program: String,
        /// Its limit.
        timeout: Duration,
    },
    /// It was killed, as the daemon ends.
    #[error("the daemon ends")]
    Stopped,
}

/// Runs `command` with further `arguments` and with `input` at its standard input, until it ends,
/// but no longer than `timeout` or until `stop` is set.
///
/// # Errors
/// When its exit status is not 0, and whatever kept it from ending.
pub fn run(
    command: &[String],
    arguments: &[String],
    input: &str,
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<(), ProcessError> {
    let (program, own) = command.split_first().map_or(("", &[][..]), |(p, own)| (p.as_str(), own));
    let start = |error: io::Error| ProcessError::Start { program: program.to_owned(), error };
    let (mut output, writer) = io::pipe().map_err(start)?;
    let mut builder = Command::new(program);
    builder.args(own).args(arguments).process_group(0);
    builder.stdin(input_file(input).map_err(start)?);
    builder.stdout(writer.try_clone().map_err(start)?).stderr(writer);
    let child = builder.spawn();
    // The pipe's other end is the program's alone.
    drop(builder);
    let mut running = Running { child: child.map_err(start)?, is_over: false };
    let mut said = Vec::new();
    let ended = running.wait(&mut output, &mut said, timeout, stop).map_err(start)?;
    let program = program.to_owned();
    match ended {
        Ended::Itself(status) if status.success() => Ok(()),
        Ended::Itself(status) => {
            Err(ProcessError::Failed { program, said: last_line(&said), status })
        }
        Ended::TimedOut => Err(ProcessError::TimedOut { program, timeout }),
        Ended::Stopped => Err(ProcessError::Stopped),
    }
}

/// What a program finds at its standard input; never waits for it to read.
fn input_file(input: &str) -> io::Result<Stdio> {
    if input.is_empty() {
        return Ok(Stdio::null());
    }
    let mut file = File::from(memfd_create("holdfast", MemfdFlags::CLOEXEC)?);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    last.unwrap_or("it said nothing").to_owned()
}

enum Ended {
    Itself(ExitStatus),
    TimedOut,
    Stopped,
}

/// A program and what it starts; killed when dropped.
struct Running {
    child: Child,
    is_over: bool,
}

impl Running {
    fn wait(
        &mut self,
        output: &mut io::PipeReader,
        said: &mut Vec<u8>,
        timeout: Duration,
        stop: &AtomicBool,
    ) -> io::Result<Ended> {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let deadline = Instant::now() + timeout;
        let mut is_open = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if stop.load(Ordering::Relaxed) {
                return Ok(Ended::Stopped);
            }
            if left.is_zero() {
                return Ok(Ended::TimedOut);
            }
            let turn = Timespec::try_from(left.min(TURN)).map_err(io::Error::other)?;
            let mut fds =
                [PollFd::new(&process, PollFlags::IN), PollFd::new(output, PollFlags::IN)];
            let watched = if is_open { &mut fds[..] } else { &mut fds[..1] };
            match poll(watched, Some(&turn)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            let (has_ended, has_said) =
                (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if is_open && has_said {
                // What it said before it ended is read first.
                is_open = read_some(output, said)?;
            } else if has_ended {
                let status = self.child.wait()?;
                self.is_over = true;
                return Ok(Ended::Itself(status));
            }
        }
    }
}

/// Returns whether there may be more.
fn read_some(output: &mut io::PipeReader, said: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; OUTPUT_MAX];
    let length = output.read(&mut chunk)?;
    let room = OUTPUT_MAX - said.len();
    said.extend_from_slice(&chunk[..length.min(room)]);
    Ok(length > 0)
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            // It may have ended meanwhile, and is waited for in any case.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str, input: &str, timeout: Duration) -> Result<(), ProcessError> {
        let command = ["sh", "-c", script].map(str::to_owned);
        run(&command, &[], input, timeout, &AtomicBool::new(false))
    }

    #[test]
    fn a_program_ends_well_or_says_why_not() {
        shell("true", "", LONG).unwrap();
        shell("test \"$(cat)\" = 'two\nlines'", "two\nlines\n", LONG).unwrap();
        shell("test -z \"$(cat)\"", "", LONG).unwrap();
        let error = shell("echo first; echo the last >&2; echo; exit 3", "", LONG).unwrap_err();
        assert_eq!(error.to_string(), "sh: the last (exit status: 3)");
        let error = shell("kill -9 $$", "", LONG).unwrap_err();
        assert_eq!(error.to_string(), "sh: it said nothing (signal: 9 (SIGKILL))");
        let nowhere = ["/nowhere/vtysh".to_owned()];
        let error = run(&nowhere, &[], "", LONG, &AtomicBool::new(false)).unwrap_err();
        assert!(error.to_string().starts_with("cannot start /nowhere/vtysh: No such file"));
    }

    /// More than a pipe holds, and what is kept is bounded.
    #[test]
    fn a_program_may_say_much() {
        shell("seq 200000", "", LONG).unwrap();
        let error = shell("seq 200000; exit 1", "", LONG).unwrap_err();
        assert!(error.to_string().len() < 100, "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_all_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let lock = directory.path().join("lock");
        let script = format!("exec 9>{0}; flock 9; (sleep 1000)& sleep 1000", lock.display());
        let error = shell(&script, "", Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().ends_with("did not end within 300ms"), "{error}");
        // Both held the lock.
        File::create(&lock).unwrap().lock().unwrap();
    }

    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let start = Instant::now();
        shell("sleep 30 & exit 0", "", LONG).unwrap();
        assert!(start.elapsed() < LONG);
    }

    #[test]
    fn the_daemons_end_ends_it() {
        let command = ["sleep".to_owned(), "1000".to_owned()];
        let stopped = run(&command, &[], "", LONG, &AtomicBool::new(true));
        assert!(matches!(stopped, Err(ProcessError::Stopped)));
    }
}
