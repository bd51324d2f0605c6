//! Compares the session table with what the host's kernel holds, which is the truth (R1): learns
//! what the table lacks, keeps what the kernel holds and ends what it does not. Runs beside the
//! workers, never as one of them, and never holds more than marks: what the kernel lists goes by.
//!
//! A check has two passes. In the first the kernel lists its sessions, and each is marked in the
//! table, or learnt. In the second the table is walked over. What is marked and live is kept; of
//! all else that would change the kernel is asked once more, for this one flow: a list takes
//! seconds, and packets do not wait for it.

use std::net::SocketAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use holdfast_handoff::{Announcement, Clock, Version, WorkerEnd};
use holdfast_net::FlowKey;

use crate::session::bucket;
use crate::session::expiry::Timeouts;
use crate::session::table::{Entry, Insert, SessionTable};
use crate::session::word::Kind;
use crate::session::{Session, State};
use crate::time::Tick;

/// Flows that the kernel is asked for in a check, at most; the others wait for the next one.
pub const ASKED_MAX: usize = 65_536;

/// The host's kernel, or what stands for it in a test.
pub trait Kernel {
    /// Why it does not answer.
    type Error;

    /// Shows `see` every session that it holds.
    ///
    /// # Errors
    /// When it does not answer, or not to the end.
    fn list(&mut self, see: &mut dyn FnMut(HeldSession)) -> Result<(), Self::Error>;

    /// What it holds of one flow now.
    ///
    /// # Errors
    /// When it does not answer.
    fn holds(&mut self, flow: &FlowKey) -> Result<Held, Self::Error>;
}

/// A session that the kernel holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldSession {
    /// Its flow.
    pub flow: FlowKey,
    /// Established, or closed by one of both.
    pub state: State,
    /// When the client was last heard, as the version that a session has which is learnt: a
    /// client that vanished may have a later session on this flow with another server (R12).
    pub heard: Version,
}

/// What the kernel holds of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// A session in this state: established, or closed by one of both.
    Session(State),
    /// A handshake that is not complete.
    Opening,
    /// No session: FIN went both ways, or there is no socket but the one that listens.
    Over,
    /// Nothing, and no socket listens for the service: its sessions are not this kernel's, as in
    /// another network namespace, and what it lacks says nothing about them.
    NoService,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Findings {
    /// Sessions of our services that the kernel holds.
    pub held: u64,
    /// Of these, the ones that the table lacked and has now (R7).
    pub learnt: u64,
    /// The ones that the table lacked and has no room for.
    pub table_full: u64,
    /// The ones that were idle for half of their timeout, and are as if just seen.
    pub kept_alive: u64,
    /// The ones that were half-open in the table, and are established.
    pub established: u64,
    /// The ones that were closed or reset in the table, and live again (R8).
    pub revived: u64,
    /// Sessions of the table that the kernel does not hold any more: closed now (R8).
    pub ended: u64,
    /// Single flows that the kernel was asked for.
    pub asked: u64,
}

/// The comparison, and what it remembers from one check to the next.
#[derive(Debug)]
pub struct Comparison {
    table: Arc<SessionTable>,
    clock: Arc<Clock>,
    core: WorkerEnd,
    timeouts: Timeouts,
    /// A bit for each entry of each bucket: the kernel listed it in this check.
    listed: Box<[u8]>,
    /// The same: in the check before it was live, and the kernel did not list it.
    missed: Box<[u8]>,
    /// When the check before began: what is newer was not there yet.
    began_before: Option<Version>,
    /// The bucket that the second pass begins with: where questions ran out.
    first: usize,
}

const _: () = assert!(bucket::WORDS <= u8::BITS as usize);

impl Comparison {
    /// Compares `table`, whose entries time out after `timeouts`; `core` is for publishing.
    #[must_use]
    pub fn new(
        table: Arc<SessionTable>,
        clock: Arc<Clock>,
        core: WorkerEnd,
        timeouts: &Timeouts,
    ) -> Comparison {
        let marks = || vec![0; table.buckets()].into_boxed_slice();
        Comparison {
            timeouts: *timeouts,
            listed: marks(),
            missed: marks(),
            began_before: None,
            first: 0,
            table,
            clock,
            core,
        }
    }

    /// Goes by other timeouts, and has the table go by them from the next check on: not before the
    /// sessions that the kernel holds are kept by them, or it would forget those that are idle.
    pub fn set_timeouts(&mut self, timeouts: &Timeouts) {
        self.timeouts = *timeouts;
    }

    /// Idle for so long, a session that the kernel holds is kept alive; in milliseconds.
    fn keep_alive_ms(&self) -> u64 {
        self.timeouts.established_ms / 2
    }

    /// Idle for so long, one that lingers although the kernel holds it is revived. The segment
    /// that ended it is with the kernel by then. In milliseconds.
    fn revive_ms(&self) -> u64 {
        self.timeouts.linger_ms / 4
    }

    /// Makes one check; `now` is what the workers' clock says.
    ///
    /// # Errors
    /// The kernel's. What was found until then stays; nothing is ended for want of an answer.
    pub fn check<K: Kernel>(
        &mut self,
        kernel: &mut K,
        now: impl Fn() -> Tick,
    ) -> Result<Findings, K::Error> {
        // Nothing was asked; what all workers are told does not concern us.
        while self.core.answer().is_some() {}
        let mut check = Check {
            began: self.clock.next(),
            kernel,
            findings: Findings::default(),
            elsewhere: Vec::new(),
            out_of_questions_at: None,
        };
        let learnt = self.learn(&mut check, &now);
        self.core.ring_doorbell();
        let walked = learnt.and_then(|()| self.walk(&mut check, &now));
        self.table.set_timeouts(&self.timeouts);
        match walked {
            Ok(()) => {
                self.began_before = Some(check.began);
                self.first = check.out_of_questions_at.unwrap_or(0);
                Ok(check.findings)
            }
            Err(error) => {
                self.began_before = None;
                Err(error)
            }
        }
    }

    /// R7: what the kernel holds is ours: marks it, or learns it. A redirect stays, for the DHT
    /// knows of a later session on that flow than a socket that sends nothing can prove.
    fn learn<K: Kernel>(
        &mut self,
        check: &mut Check<'_, K>,
        now: &impl Fn() -> Tick,
    ) -> Result<(), K::Error> {
        let Comparison { table, core, listed, .. } = self;
        let Check { kernel, findings, .. } = check;
        listed.fill(0);
        kernel.list(&mut |HeldSession { flow, state, heard: version }| {
            let Some(at) = table.locate_flow(&flow) else {
                return;
            };
            findings.held += 1;
            let entry = match table.find(&at) {
                Some(entry) => entry,
                None => {
                    let session = Session::Local { state, version, published: false };
                    match table.insert(&at, session, now()) {
                        Insert::Inserted(entry) => {
                            findings.learnt += 1;
                            // What finds no room in the ring is published by the workers' sweeps.
                            if core.announce(Announcement::Publish { flow, version }).is_ok() {
                                table.set_published(&entry);
                            }
                            entry
                        }
                        // A worker has learnt it meanwhile.
                        Insert::Exists(entry) => entry,
                        Insert::Full => return findings.table_full += 1,
                    }
                }
            };
            let (bucket, bit) = place(table, &entry);
            listed[bucket] |= bit;
        })
    }

    /// Walks over the table: what is listed and live is kept, and all else judged.
    fn walk<K: Kernel>(
        &mut self,
        check: &mut Check<'_, K>,
        now: &impl Fn() -> Tick,
    ) -> Result<(), K::Error> {
        let buckets = self.table.buckets();
        for bucket in (self.first..buckets).chain(0..self.first) {
            let mut entries = ArrayVec::<_, { bucket::WORDS }>::new();
            self.table.visit(bucket, |entry| {
                if matches!(entry.kind(), Kind::Local(_)) {
                    entries.push(entry);
                }
            });
            let mut missed = 0;
            for entry in &entries {
                let bit = place(&self.table, entry).1;
                if self.judge(entry, check, now())? {
                    missed |= bit;
                }
            }
            self.missed[bucket] = missed;
        }
        Ok(())
    }

    /// What is to be done about an entry. Returns whether it is live and the kernel lacks it.
    fn judge<K: Kernel>(
        &self,
        entry: &Entry,
        check: &mut Check<'_, K>,
        now: Tick,
    ) -> Result<bool, K::Error> {
        let Kind::Local(state) = entry.kind() else {
            return Ok(false);
        };
        let is_live = state != State::HalfOpen && !state.is_lingering();
        let (bucket, bit) = place(&self.table, entry);
        let is_listed = self.listed[bucket] & bit != 0;
        let idle_ms = self.table.idle_ms(entry, now);
        if is_live && is_listed {
            if idle_ms >= self.keep_alive_ms() {
                self.table.touch(entry, now);
                check.findings.kept_alive += 1;
            }
            return Ok(false);
        }
        // Without a version it is being made, or has changed.
        let Some(version) = self.table.version(entry) else {
            return Ok(false);
        };
        let may_change = match state {
            State::HalfOpen => is_listed && version < check.began,
            _ if state.is_lingering() => is_listed && idle_ms >= self.revive_ms(),
            // Twice in a row: a list can pass one by while others come and go, and a kernel with
            // SYN cookies holds nothing until it has read the client's ACK.
            _ => self.missed[bucket] & bit != 0 && Some(version) < self.began_before,
        };
        if !may_change {
            return Ok(is_live);
        }
        let Some(flow) = self.table.listed(entry, now).map(|listed| listed.flow) else {
            return Ok(false);
        };
        match check.ask(&flow, bucket)? {
            Some(Held::Session(_)) if is_live => return Ok(false),
            Some(Held::Session(held)) => self.live_again(entry, state, held, check, now),
            Some(Held::Over) if is_live && self.end(entry, version, state, now) => {
                check.findings.ended += 1;
            }
            _ => {}
        }
        Ok(is_live)
    }

    /// R1, R8: a session that the kernel holds is live. If it is not published yet the workers'
    /// sweeps publish it.
    fn live_again<K>(
        &self,
        entry: &Entry,
        state: State,
        held: State,
        check: &mut Check<'_, K>,
        now: Tick,
    ) {
        if self.table.transition(entry, held, now).is_some() {
            match state {
                State::HalfOpen => check.findings.established += 1,
                _ => check.findings.revived += 1,
            }
        }
    }

    /// R8: closes a session that the kernel does not hold. Returns whether it was that one.
    fn end(&self, entry: &Entry, version: Version, state: State, now: Tick) -> bool {
        let Some(closed) = self.table.transition(entry, State::Closed, now) else {
            return false;
        };
        // Another session may have come so far in its place meanwhile that it looked the same.
        let is_another = self.table.version(&closed).is_some_and(|found| found != version);
        if is_another {
            // If it has changed by now, it has ended itself.
            let _ = self.table.transition(&closed, state, now);
        }
        !is_another
    }
}

/// An entry's bucket, and its bit among those of the bucket.
fn place(table: &SessionTable, entry: &Entry) -> (usize, u8) {
    let (bucket, position) = table.place(entry);
    (bucket, 1 << position)
}

/// One check under way.
struct Check<'k, K> {
    kernel: &'k mut K,
    began: Version,
    findings: Findings,
    /// Services for which no socket listens here.
    elsewhere: Vec<SocketAddr>,
    out_of_questions_at: Option<usize>,
}

impl<K: Kernel> Check<'_, K> {
    /// Asks for one flow; `None` when that is of no use, or too much was asked already.
    fn ask(&mut self, flow: &FlowKey, bucket: usize) -> Result<Option<Held>, K::Error> {
        let service = flow.service();
        if self.elsewhere.contains(&service) {
            return Ok(None);
        }
        if self.findings.asked >= ASKED_MAX as u64 {
            self.out_of_questions_at.get_or_insert(bucket);
            return Ok(None);
        }
        self.findings.asked += 1;
        let held = self.kernel.holds(flow)?;
        if held == Held::NoService {
            self.elsewhere.push(service);
        }
        Ok(Some(held))
    }
}
