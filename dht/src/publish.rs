//! The sessions that this node publishes: the source of truth for their records. Never asks who
//! the closest nodes are and never sends; it says what is missing where.

use arrayvec::ArrayVec;
use holdfast_handoff::Version;
use holdfast_net::FlowKey;
use smallvec::SmallVec;

use crate::config::REPLICAS_MAX;
use crate::peer_slots::Slot;

/// Replicas and former replicas that a published session remembers.
const HOLDERS_MAX: usize = REPLICAS_MAX + 4;

/// Some replicas.
pub(crate) type Slots = SmallVec<[Slot; REPLICAS_MAX]>;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is to be found.
    Live,
    /// Its record is being deleted.
    Withdrawn,
}

/// What we know of a replica's copy, as far as the phase and version at hand go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// Never sent in any phase or version.
    None,
    /// To be sent; may hold an older one.
    Unsettled,
    /// Sent, no answer yet.
    InFlight,
    /// Stored, or deleted.
    Settled,
    /// To be dropped there, because the record has moved; no answer yet.
    Releasing,
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    slot: Slot,
    copy: Copy,
    /// Whether it is one of the closest now.
    wanted: bool,
}

/// A published session.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) flow: FlowKey,
    /// Version of the session, by the worker's word.
    pub(crate) session: Version,
    /// Version of its record: the session's, or a greater one that a STALE answer called for.
    pub(crate) version: Version,
    pub(crate) phase: Phase,
    /// When the worker announced the phase.
    pub(crate) announced_at_us: u64,
    /// When the first STORE of the session was sent to another server.
    pub(crate) first_sent_at_us: Option<u64>,
    /// When to look after the entry: to retry, to refresh, or to forget it.
    pub(crate) due_at_us: u64,
    /// When to store it again although nothing is missing.
    pub(crate) refresh_at_us: u64,
    /// Epoch of the routing table that the replicas were chosen by.
    pub(crate) epoch: u64,
    /// No replica is missing.
    pub(crate) settled: bool,
    /// Not all replicas had it yet since it was announced.
    pub(crate) fresh: bool,
    /// It waits in a queue.
    pub(crate) queued: bool,
    /// How often its version was raised.
    pub(crate) raises: u8,
    /// How often its deletion was tried again.
    pub(crate) rounds: u8,
    holders: ArrayVec<Holder, HOLDERS_MAX>,
}

/// What there is to send for an entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) send: Slots,
    /// Of these, the ones that were never sent to.
    pub(crate) new: usize,
    /// Former replicas dropped from memory.
    pub(crate) forgotten: usize,
}

impl Entry {
    pub(crate) fn new(flow: FlowKey, version: Version, phase: Phase, now_us: u64) -> Entry {
        Entry {
            flow,
            session: version,
            version,
            phase,
            announced_at_us: now_us,
            first_sent_at_us: None,
            due_at_us: now_us,
            refresh_at_us: 0,
            epoch: 0,
            settled: false,
            fresh: true,
            queued: false,
            raises: 0,
            rounds: 0,
            holders: ArrayVec::new(),
        }
    }

    /// Begins another phase or session on the same flow. Whoever held the last may hold it
    /// still.
    pub(crate) fn renew(&mut self, version: Version, phase: Phase, now_us: u64) {
        let raised = match phase {
            Phase::Live => Version(self.version.0.saturating_add(1)),
            Phase::Withdrawn => self.version,
        };
        let fresh = Entry::new(self.flow, version, phase, now_us);
        let holders = std::mem::take(&mut self.holders);
        let queued = self.queued;
        *self = Entry { version: version.max(raised), holders, queued, ..fresh };
        self.unsettle();
    }

    /// Gives the record a greater version, to be stored everywhere again.
    pub(crate) fn raise(&mut self, above: Version) {
        self.version = Version(above.0.saturating_add(1)).max(self.version);
        self.raises += 1;
        self.unsettle();
    }

    /// All replicas are to be told again.
    pub(crate) fn unsettle(&mut self) {
        self.settled = false;
        for holder in &mut self.holders {
            if !matches!(holder.copy, Copy::None | Copy::Releasing) {
                holder.copy = Copy::Unsettled;
            }
        }
    }

    /// Takes the closest nodes of now, and says whom to send the record or its deletion to.
    pub(crate) fn plan(&mut self, closest: &[Slot]) -> Plan {
        let mut plan = Plan::default();
        for holder in &mut self.holders {
            holder.wanted = closest.contains(&holder.slot) || self.phase == Phase::Withdrawn;
        }
        self.holders.retain(|h| h.wanted || h.copy != Copy::None);
        for slot in closest {
            if !self.holders.iter().any(|h| h.slot == *slot) {
                plan.forgotten += self.add(*slot, closest);
            }
        }
        let missing = |h: &&Holder| h.wanted && matches!(h.copy, Copy::None | Copy::Unsettled);
        plan.send = self.holders.iter().filter(missing).map(|h| h.slot).collect();
        let new = |h: &&Holder| h.wanted && h.copy == Copy::None;
        plan.new = self.holders.iter().filter(new).count();
        self.settled = self.is_settled();
        plan
    }

    /// Adds a replica, in the place of an earlier life of its server; of too many, the oldest
    /// former one is forgotten.
    fn add(&mut self, slot: Slot, closest: &[Slot]) -> usize {
        let holder = Holder { slot, copy: Copy::None, wanted: true };
        if let Some(earlier) = self.holders.iter_mut().find(|h| h.slot.index() == slot.index()) {
            *earlier = holder;
            return 0;
        }
        let mut forgotten = 0;
        if self.holders.is_full() {
            let former = self.holders.iter().position(|h| !closest.contains(&h.slot));
            self.holders.remove(former.unwrap_or(0));
            forgotten = 1;
        }
        self.holders.push(holder);
        forgotten
    }

    /// The record, or its deletion, is on its way.
    pub(crate) fn sent(&mut self, slot: Slot) {
        self.note(slot, Copy::InFlight);
    }

    /// It was not sent, or not answered.
    pub(crate) fn unanswered(&mut self, slot: Slot) {
        self.note(slot, Copy::Unsettled);
    }

    /// It arrived. Returns whether that was the last one missing.
    pub(crate) fn acknowledged(&mut self, slot: Slot) -> bool {
        self.note(slot, Copy::Settled);
        let before = self.settled;
        self.settled = self.is_settled();
        self.settled && !before
    }

    /// Former replicas that may hold the record although all of now's do.
    pub(crate) fn former(&self) -> Slots {
        let held = |h: &&Holder| !h.wanted && matches!(h.copy, Copy::Unsettled | Copy::Settled);
        self.holders.iter().filter(held).map(|h| h.slot).collect()
    }

    /// Whether a former replica may hold the record, also one that was told to drop it.
    pub(crate) fn has_former(&self) -> bool {
        self.holders.iter().any(|h| !h.wanted && h.copy != Copy::None)
    }

    /// The word to drop the record is on its way.
    pub(crate) fn releasing(&mut self, slot: Slot) {
        self.note(slot, Copy::Releasing);
    }

    /// The record is not held there any more, or nobody can tell. It may be wanted again.
    pub(crate) fn released(&mut self, slot: Slot) {
        self.note(slot, Copy::None);
        self.holders.retain(|h| h.slot != slot || h.wanted);
        self.settled = self.is_settled();
    }

    fn note(&mut self, slot: Slot, copy: Copy) {
        if let Some(holder) = self.holders.iter_mut().find(|h| h.slot == slot) {
            holder.copy = copy;
        }
    }

    fn is_settled(&self) -> bool {
        let settled = |h: &Holder| !h.wanted || h.copy == Copy::Settled;
        self.holders.iter().all(settled)
    }

    /// Whether answers are awaited.
    pub(crate) fn in_flight(&self) -> bool {
        self.holders.iter().any(|h| matches!(h.copy, Copy::InFlight | Copy::Releasing))
    }

    /// Whether these are the replicas that it was planned for.
    pub(crate) fn is_planned_for(&self, closest: &[Slot]) -> bool {
        let wanted = self.holders.iter().filter(|h| h.wanted);
        wanted.clone().count() == closest.len() && wanted.clone().all(|h| closest.contains(&h.slot))
    }

    /// Replicas that have not settled.
    pub(crate) fn missing(&self) -> usize {
        let missing = |h: &&Holder| h.wanted && h.copy != Copy::Settled;
        self.holders.iter().filter(missing).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_slots::PeerSlots;

    fn slots(n: u8) -> Vec<Slot> {
        let mut slots = PeerSlots::new(([10, 0, 0, 1], 7000).into());
        let address = |n| ([10, 0, 0, n], 7000).into();
        (0..n).filter_map(|n| slots.begin(address(n + 2))).collect()
    }

    fn live(version: u64) -> Entry {
        let flow = FlowKey::tcp_v4([20, 1, 1, 1], 1, [192, 168, 0, 1], 80);
        Entry::new(flow, Version(version), Phase::Live, 0)
    }

    /// Plans, and sends all there is to send.
    fn send(entry: &mut Entry, closest: &[Slot]) -> Vec<Slot> {
        let plan = entry.plan(closest);
        plan.send.iter().for_each(|slot| entry.sent(*slot));
        plan.send.to_vec()
    }

    fn settle(entry: &mut Entry, closest: &[Slot]) {
        for slot in send(entry, closest) {
            entry.acknowledged(slot);
        }
        assert!(entry.settled);
    }

    #[test]
    fn r3_is_settled_when_all_replicas_have_acknowledged() {
        let slots = slots(3);
        let mut entry = live(1);
        assert_eq!(send(&mut entry, &slots), slots);
        assert!(!entry.acknowledged(slots[0]));
        entry.unanswered(slots[1]);
        assert!(!entry.acknowledged(slots[2]));
        assert_eq!(entry.missing(), 1);
        // Sent again to those who miss it only.
        assert_eq!(send(&mut entry, &slots), [slots[1]]);
        assert!(entry.acknowledged(slots[1]));
        assert!(entry.settled && !entry.in_flight());
        assert_eq!(send(&mut entry, &slots), []);
    }

    #[test]
    fn only_what_moved_is_stored_again() {
        let slots = slots(4);
        let mut entry = live(1);
        settle(&mut entry, &slots[..3]);
        let plan = entry.plan(&slots[1..]);
        assert_eq!((plan.send.to_vec(), plan.new), (vec![slots[3]], 1));
        assert!(!entry.settled);
        // Back again before anything was sent: nothing to do.
        assert_eq!(entry.plan(&slots[..3]).send.len(), 0);
        assert!(entry.settled);
    }

    #[test]
    fn r8_a_deletion_goes_to_former_replicas_too() {
        let slots = slots(4);
        let mut entry = live(5);
        settle(&mut entry, &slots[..3]);
        settle(&mut entry, &slots[1..]);
        entry.renew(Version(5), Phase::Withdrawn, 9);
        let mut told = send(&mut entry, &slots[1..]);
        told.sort_by_key(|slot| slots.iter().position(|s| s == slot));
        assert_eq!(told, slots);
        assert_eq!(entry.version, Version(5));
    }

    #[test]
    fn r12_a_newer_session_on_the_flow_is_stored_above_the_last() {
        let slots = slots(3);
        let mut entry = live(5);
        settle(&mut entry, &slots);
        entry.raise(Version(9));
        assert_eq!(entry.version, Version(10));
        assert_eq!(send(&mut entry, &slots), slots);
        entry.renew(Version(7), Phase::Live, 9);
        assert_eq!((entry.session, entry.version), (Version(7), Version(11)));
        assert_eq!(send(&mut entry, &slots), slots);
        entry.renew(Version(20), Phase::Live, 9);
        assert_eq!((entry.session, entry.version), (Version(20), Version(20)));
    }

    #[test]
    fn remembers_a_bounded_number_of_former_replicas() {
        let slots = slots(40);
        let mut entry = live(1);
        let mut forgotten = 0;
        for closest in slots.chunks_exact(4) {
            forgotten += entry.plan(closest).forgotten;
            settle(&mut entry, closest);
        }
        assert_eq!(forgotten, 40 - HOLDERS_MAX);
        entry.renew(Version(1), Phase::Withdrawn, 9);
        assert_eq!(send(&mut entry, &slots[36..]).len(), HOLDERS_MAX);
    }
}
