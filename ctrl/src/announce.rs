//! Has the services' prefixes announced and withdrawn, by FRR or ExaBGP, on a thread of its own.
//! Never speaks BGP, and never decides what is announced: `health` does.

pub(crate) mod mark;
mod process;

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{info, warn};

use crate::config::{Announce, Announcer, Config, Lines};

pub use mark::{Mark, MarkError};
use process::ProcessError;

/// Pause after the announcer has failed: twice as long each time, up to the second.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How soon a wait sees that it is to stop.
const TURN: Duration = Duration::from_millis(100);
/// RFC 8326: who receives a route with this community prefers every other one.
const GRACEFUL_SHUTDOWN: &str = "[65535:0]";

/// How a prefix is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// As a route like any other.
    Announced,
    /// With the community GRACEFUL_SHUTDOWN: taken only by who has no other route (RFC 8326).
    GracefulShutdown,
    /// Not at all.
    Withdrawn,
}

impl Route {
    /// The word in the control protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Route::Announced => "announced",
            Route::GracefulShutdown => "graceful_shutdown",
            Route::Withdrawn => "withdrawn",
        }
    }

    /// The route-map in FRR that makes it so.
    const fn route_map(self) -> &'static str {
        match self {
            Route::Announced => "holdfast-announce",
            Route::GracefulShutdown => "holdfast-graceful-shutdown",
            Route::Withdrawn => "holdfast-withdraw",
        }
    }
}

/// Prefixes and how they are to be announced; `None` leaves one as it is.
pub type Routes = Vec<(IpNet, Option<Route>)>;

/// Why the announcer does not know what it was told.
#[derive(Debug, Error)]
pub enum AnnounceError {
    /// Its program failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nobody has opened the named pipe for reading.
    #[error("{}: nobody reads from it; does ExaBGP run?", .0.display())]
    NoReader(PathBuf),
    /// The file is there, and something else.
    #[error("{}: is no named pipe", .0.display())]
    NoPipe(PathBuf),
    /// The pipe stayed full.
    #[error("{}: its reader took nothing for {timeout:?}", path.display())]
    TimedOut {
        /// The pipe.
        path: PathBuf,
        /// `announce.timeout`.
        timeout: Duration,
    },
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The pipe.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The daemon ends.
    #[error("the daemon ends")]
    Stopped,
}

/// Tells the announcer how prefixes are to be announced; telling it again changes nothing. Returns
/// when it has taken that, which is before the network has.
///
/// # Errors
/// When it has not taken it, or only a part, within `announce.timeout`.
pub fn tell(
    config: &Announce,
    routes: &[(IpNet, Route)],
    stop: &AtomicBool,
) -> Result<(), AnnounceError> {
    let timeout = config.timeout;
    match &config.announcer {
        _ if routes.is_empty() => Ok(()),
        Announcer::None => Ok(()),
        Announcer::Frr { command, bgp_instance } => {
            let arguments = frr_arguments(routes, bgp_instance);
            Ok(process::run(command, &arguments, "", timeout, stop)?)
        }
        Announcer::ExaBgp(Lines::Command(command)) => {
            Ok(process::run(command, &[], &exabgp_lines(routes).concat(), timeout, stop)?)
        }
        Announcer::ExaBgp(Lines::Pipe(path)) => {
            write_lines(path, &exabgp_lines(routes), timeout, stop)
        }
    }
}

/// vtysh's arguments. A prefix's `network` statement is there in any case, and its route-map says
/// what becomes of it: so each command is right whatever was there before.
fn frr_arguments(routes: &[(IpNet, Route)], bgp_instance: &str) -> Vec<String> {
    let mut commands = vec!["configure terminal".to_owned()];
    for (route, action) in [
        (Route::Announced, "permit"),
        (Route::GracefulShutdown, "permit"),
        (Route::Withdrawn, "deny"),
    ] {
        commands.push(format!("route-map {} {action} 10", route.route_map()));
        if route == Route::GracefulShutdown {
            commands.push("set community graceful-shutdown".to_owned());
        }
        commands.push("exit".to_owned());
    }
    commands.push(format!("router bgp {bgp_instance}").trim_end().to_owned());
    for (family, is_v4) in [("ipv4", true), ("ipv6", false)] {
        let mut routes = routes.iter().filter(|(prefix, _)| prefix.addr().is_ipv4() == is_v4);
        let mut next = routes.next();
        if next.is_none() {
            continue;
        }
        commands.push(format!("address-family {family} unicast"));
        while let Some((prefix, route)) = next {
            commands.push(format!("network {prefix} route-map {}", route.route_map()));
            next = routes.next();
        }
        commands.push("exit-address-family".to_owned());
    }
    let commands = commands.into_iter().flat_map(|command| ["-c".to_owned(), command]);
    ["-d".to_owned(), "bgpd".to_owned()].into_iter().chain(commands).collect()
}

/// The lines of ExaBGP's API, each with its newline.
fn exabgp_lines(routes: &[(IpNet, Route)]) -> Vec<String> {
    let line = |(prefix, route): &(IpNet, Route)| match route {
        Route::Announced => format!("announce route {prefix} next-hop self\n"),
        Route::GracefulShutdown => {
            format!("announce route {prefix} next-hop self community {GRACEFUL_SHUTDOWN}\n")
        }
        Route::Withdrawn => format!("withdraw route {prefix} next-hop self\n"),
    };
    routes.iter().map(line).collect()
}

/// Writes each line at once, as others may write into the pipe as well.
fn write_lines(
    path: &Path,
    lines: &[String],
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<(), AnnounceError> {
    let failed = |error: io::Error| AnnounceError::Io { path: path.to_owned(), error };
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pipe = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(pipe) => File::from(pipe),
        Err(Errno::NXIO) => return Err(AnnounceError::NoReader(path.to_owned())),
        Err(error) => return Err(failed(error.into())),
    };
    if !pipe.metadata().map_err(failed)?.file_type().is_fifo() {
        return Err(AnnounceError::NoPipe(path.to_owned()));
    }
    let deadline = Instant::now() + timeout;
    for line in lines {
        // Shorter than PIPE_BUF: all of it or nothing.
        while let Err(error) = (&pipe).write_all(line.as_bytes()) {
            match error.kind() {
                ErrorKind::WouldBlock => {}
                ErrorKind::BrokenPipe => return Err(AnnounceError::NoReader(path.to_owned())),
                _ => return Err(failed(error)),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AnnounceError::TimedOut { path: path.to_owned(), timeout });
            }
            if stop.load(Ordering::Relaxed) {
                return Err(AnnounceError::Stopped);
            }
            let turn =
                Timespec::try_from(left.min(TURN)).map_err(|e| failed(io::Error::other(e)))?;
            match poll(&mut [PollFd::new(&pipe, PollFlags::OUT)], Some(&turn)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
    Ok(())
}

/// What the announcer was told, and what came of it.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// How each prefix is announced, as far as the announcer took our word; `None` when it was not
    /// told, or failed since.
    pub told: Routes,
    /// Since when that is what was wanted.
    pub since: Option<Instant>,
    /// Times that it was told something.
    pub runs: u64,
    /// Of these, the ones that failed.
    pub failures: u64,
    /// Why the last one failed, if it did.
    pub trouble: Option<String>,
}

#[derive(Debug)]
struct Book {
    wanted: Routes,
    /// It is to be told, whatever it was told before.
    due: bool,
    retry: Option<Retry>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    pause: Duration,
}

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that tells the announcer, and tells it again when it failed or may have forgotten.
#[derive(Debug)]
pub struct AnnounceThread {
    shared: Arc<Shared>,
    /// None is needed to tell nobody.
    thread: Option<JoinHandle<()>>,
}

impl AnnounceThread {
    /// Starts it; nothing is told before something is wanted.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(config: &Announce) -> io::Result<AnnounceThread> {
        let book =
            Book { wanted: Vec::new(), due: false, retry: None, standing: Standing::default() };
        let shared = Arc::new(Shared {
            book: Mutex::new(book),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let thread = match config.announcer {
            Announcer::None => None,
            _ => {
                let (shared, config) = (Arc::clone(&shared), config.clone());
                let thread = std::thread::Builder::new().name("announce".to_owned());
                Some(thread.spawn(move || shared.run(&config))?)
            }
        };
        Ok(AnnounceThread { shared, thread })
    }

    /// Has prefixes announced like this from now on.
    pub fn want(&self, routes: &Routes) {
        let mut book = self.shared.book();
        if book.wanted == *routes {
            return;
        }
        book.wanted.clone_from(routes);
        // Whoever fails may take this better.
        book.retry = None;
        if self.thread.is_none() {
            book.standing.told.clone_from(routes);
            book.standing.since = Some(Instant::now());
        } else {
            book.due = true;
            book.standing.since = None;
            self.shared.changed.notify_all();
        }
    }

    /// How things stand.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.shared.book().standing.clone()
    }

    /// Whether it has ended by itself.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl Drop for AnnounceThread {
    /// Ends it, and what it has under way; what is announced stays.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, config: &Announce) {
        let mut last = Instant::now();
        while let Some((routes, fresh)) = self.next(last + config.refresh) {
            let said = known(&routes, &config.announcer, fresh);
            let outcome = tell(config, &said, &self.stop);
            last = Instant::now();
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.book().standing.runs += u64::from(!said.is_empty());
            self.note(routes, fresh, outcome, last);
        }
    }

    /// Waits until the announcer is to be told. Gives what, and whether it is news, or may not have
    /// been taken before; `None` at the end.
    fn next(&self, refresh_at: Instant) -> Option<(Routes, bool)> {
        let mut book = self.book();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let now = Instant::now();
            let retries = book.retry.is_some_and(|retry| retry.at <= now);
            if book.due || retries {
                book.due = false;
                return Some((book.wanted.clone(), true));
            }
            let next = book.retry.map_or(refresh_at, |retry| retry.at);
            if next <= now {
                return Some((book.wanted.clone(), false));
            }
            // The end is noticed though its notice is lost between the look above and the wait.
            let wait = (next - now).min(TURN);
            let waited = self.changed.wait_timeout(book, wait);
            book = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn note(&self, routes: Routes, fresh: bool, outcome: Result<(), AnnounceError>, now: Instant) {
        let mut book = self.book();
        let before = book.standing.trouble.take();
        match outcome {
            Ok(()) => {
                if before.is_some() {
                    info!("the announcer takes what it is told again");
                }
                if fresh {
                    log_routes(&book.standing.told, &routes);
                }
                book.retry = None;
                let is_new = book.standing.since.is_none() && book.wanted == routes;
                book.standing.told = merged(&book.standing.told, &routes);
                if is_new {
                    book.standing.since = Some(now);
                }
            }
            Err(error) => {
                let error = error.to_string();
                if before.as_ref() != Some(&error) {
                    warn!("the announcer was not told what is announced: {error}");
                }
                let pause = book.retry.map_or(RETRY_MIN, |retry| (retry.pause * 2).min(RETRY_MAX));
                book.retry = Some(Retry { at: now + pause, pause });
                book.standing.failures += 1;
                book.standing.trouble = Some(error);
                book.standing.since = None;
                // Some of it may have been taken.
                book.standing.told = routes.iter().map(|(prefix, _)| (*prefix, None)).collect();
            }
        }
    }
}

/// What is to be said: ExaBGP takes offence at routes that are withdrawn twice.
fn known(routes: &Routes, announcer: &Announcer, fresh: bool) -> Vec<(IpNet, Route)> {
    let again = |route| fresh || route != Route::Withdrawn;
    let is_exabgp = matches!(announcer, Announcer::ExaBgp(_));
    let said = routes.iter().filter_map(|(prefix, route)| Some((*prefix, (*route)?)));
    said.filter(|(_, route)| !is_exabgp || again(*route)).collect()
}

/// `told`, but for what `routes` says.
fn merged(told: &Routes, routes: &Routes) -> Routes {
    let before = |prefix| told.iter().find(|(p, _)| *p == prefix).and_then(|(_, route)| *route);
    routes.iter().map(|(prefix, route)| (*prefix, route.or_else(|| before(*prefix)))).collect()
}

fn log_routes(told: &Routes, routes: &Routes) {
    for (prefix, route) in routes {
        if let Some(route) = route
            && !told.contains(&(*prefix, Some(*route)))
        {
            info!("{prefix} is {}", route.name().replace('_', " "));
        }
    }
}

/// Withdraws what a daemon that does not come back has left announced: waits for `patience`, and
/// does nothing when a daemon with this configuration runs or is back by then. Says what was done.
///
/// # Errors
/// When the announcer does not take it.
pub fn withdraw(config: &Config, patience: Duration) -> anyhow::Result<String> {
    let announce = &config.announce;
    if announce.announcer == Announcer::None {
        return Ok("announce.announcer is none: nothing is withdrawn".to_owned());
    }
    let deadline = Instant::now() + patience;
    let mut mark = loop {
        let Some(mark) = Mark::take(&announce.state_directory)? else {
            return Ok("a daemon runs: nothing is withdrawn".to_owned());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break mark;
        }
        // Free for a daemon that starts.
        drop(mark);
        std::thread::sleep(left.min(TURN));
    };
    let left = mark.read().unwrap_or_default();
    let mut prefixes = config.prefixes();
    // Those that are not in the configuration any more.
    for (prefix, _) in &left {
        if !prefixes.contains(prefix) {
            prefixes.push(*prefix);
        }
    }
    let withdrawn: Routes = prefixes.iter().map(|p| (*p, Some(Route::Withdrawn))).collect();
    prefixes.retain(|prefix| !left.contains(&(*prefix, Some(Route::Withdrawn))));
    if prefixes.is_empty() {
        return Ok("nothing is announced".to_owned());
    }
    let routes: Vec<_> = prefixes.iter().map(|prefix| (*prefix, Route::Withdrawn)).collect();
    tell(announce, &routes, &AtomicBool::new(false))?;
    mark.write(&withdrawn)?;
    let names: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    Ok(format!("withdrawn: {}", names.join(" ")))
}

#[cfg(test)]
mod tests;
