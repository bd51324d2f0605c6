//! Reads: lookups of an owner whose replicas are known, one hop each. Never sends: it says whom
//! to ask next, and what the answers amount to.
//!
//! The best replica is asked first; the next when that one is slow (a hedge), or knows nothing.
//! The first claim that stands ends the read, unless its owner has just refused the flow (R6). That nobody owns the flow is believed when a
//! majority of the replicas said so and nobody else is waited for.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::config::REPLICAS_MAX;
use crate::id::Id;
use crate::lookup::{Said, Verdict};
use crate::record::Claim;

/// How far a read is with a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not asked.
    New,
    /// Asked.
    Asked,
    /// Said that there is no claim.
    SaidNo,
    /// Says that it is no replica: it knows nodes that we do not, or the other way round.
    NotReplica,
    /// Did not answer.
    Failed,
}

/// A replica of the record that is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replica {
    /// The way to it; `None`: ourselves.
    pub(crate) link: Option<u32>,
    /// Asked after the others, and not waited for.
    pub(crate) suspect: bool,
    pub(crate) standing: Standing,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait.
    Wait,
    /// Ask this replica.
    Ask(u32),
    /// The replicas are not who we think: look for them.
    Walk,
    /// It is over.
    Over(Verdict),
}

/// The replicas of a read.
pub(crate) type Replicas = ArrayVec<Replica, REPLICAS_MAX>;

/// A read in flight.
#[derive(Debug, Clone)]
pub(crate) struct Read<A> {
    pub(crate) id: Id,
    /// When its first request was queued.
    pub(crate) asked_at_us: Option<u64>,
    pub(crate) askers: SmallVec<[A; 1]>,
    replicas: Replicas,
    held: Option<Claim>,
    deleted: Option<Claim>,
    orphaned: Option<Claim>,
    /// Says that the flow is not its own: its claims count when all replicas have been asked, and
    /// none knows of a greater one.
    refuser: Option<IpAddr>,
}

impl<A> Read<A> {
    pub(crate) fn new(id: Id, asker: A, replicas: Replicas, refuser: Option<IpAddr>) -> Read<A> {
        Read {
            id,
            asked_at_us: None,
            askers: SmallVec::from_iter([asker]),
            replicas,
            held: None,
            deleted: None,
            orphaned: None,
            refuser,
        }
    }

    /// A replica has answered.
    pub(crate) fn said(&mut self, link: Option<u32>, said: Said) {
        match said {
            Said::Holds(claim) => self.held = self.held.max(Some(claim)),
            Said::Deleted(claim) => self.deleted = self.deleted.max(Some(claim)),
            Said::Orphaned(claim) => self.orphaned = self.orphaned.max(Some(claim)),
            Said::NotHeld => {}
        }
        self.stands(link, Standing::SaidNo);
    }

    /// A replica says that it is none, or does not answer.
    pub(crate) fn stands(&mut self, link: Option<u32>, standing: Standing) {
        let replica = self.replicas.iter_mut().find(|r| r.link == link);
        if let Some(replica) = replica.filter(|r| r.standing != Standing::SaidNo) {
            replica.standing = standing;
            replica.suspect |= standing == Standing::Failed;
        }
    }

    /// What comes next, when something was said.
    pub(crate) fn next(&mut self) -> Next {
        if let Some(claim) = self.claim().filter(|claim| Some(claim.owner) != self.refuser) {
            return Next::Over(Verdict::Found(claim));
        }
        let asked = self.count(Standing::Asked);
        let denied = self.count(Standing::SaidNo) + self.count(Standing::NotReplica);
        // One replica is asked at a time, until one has nothing to say.
        if (asked == 0 || denied > 0)
            && let Some(link) = self.ask()
        {
            return Next::Ask(link);
        }
        let waits = |r: &Replica| r.standing == Standing::Asked && !r.suspect;
        if self.replicas.iter().any(waits) {
            return Next::Wait;
        }
        if self.count(Standing::NotReplica) > 0 {
            return Next::Walk;
        }
        match self.final_verdict() {
            Verdict::Unknown if asked > 0 => Next::Wait,
            verdict => Next::Over(verdict),
        }
    }

    /// Whom to ask as well because the others are slow.
    pub(crate) fn hedge(&mut self) -> Option<u32> {
        self.ask()
    }

    fn ask(&mut self) -> Option<u32> {
        let new = |r: &&mut Replica| r.standing == Standing::New && r.link.is_some();
        // Best first, suspects last: false < true, and the order among equals is kept.
        let replica = self.replicas.iter_mut().filter(new).min_by_key(|r| r.suspect)?;
        replica.standing = Standing::Asked;
        replica.link
    }

    fn count(&self, standing: Standing) -> usize {
        self.replicas.iter().filter(|r| r.standing == standing).count()
    }

    /// The greatest claim heard, whether it stands or not.
    pub(crate) fn heard(&self) -> Option<Claim> {
        self.held.max(self.deleted).max(self.orphaned)
    }

    /// The greatest claim that stands.
    fn claim(&self) -> Option<Claim> {
        self.held.filter(|_| self.held > self.deleted.max(self.orphaned))
    }

    /// The result if nobody answers any more.
    pub(crate) fn final_verdict(&self) -> Verdict {
        if let Some(claim) = self.claim() {
            return Verdict::Found(claim);
        }
        match 2 * self.count(Standing::SaidNo) > self.replicas.len() {
            true if self.orphaned > self.deleted => Verdict::Orphaned,
            true => Verdict::NotFound,
            false => Verdict::Unknown,
        }
    }
}

/// All reads in flight, one for each record.
#[derive(Debug, Clone)]
pub(crate) struct Reads<A> {
    places: Vec<(u32, Option<Read<A>>)>,
    free: Vec<u32>,
    index: HashTable<u32>,
}

/// Names a read for as long as it is in flight.
pub(crate) type Token = u64;

impl<A> Reads<A> {
    pub(crate) fn new() -> Reads<A> {
        Reads { places: Vec::new(), free: Vec::new(), index: HashTable::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn get(&mut self, token: Token) -> Option<&mut Read<A>> {
        let (generation, read) = self.places.get_mut(token as u32 as usize)?;
        read.as_mut().filter(|_| *generation == (token >> 32) as u32)
    }

    /// The read of the record with this id.
    pub(crate) fn of(&mut self, id: Id) -> Option<&mut Read<A>> {
        let places = &self.places;
        let place = *self.index.find(hash(id), |place| is_at(places, *place, id))?;
        self.places[place as usize].1.as_mut()
    }

    /// Adds one of a record that has none.
    pub(crate) fn insert(&mut self, read: Read<A>) -> Token {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            (self.places.len() - 1) as u32
        });
        let id = read.id;
        let (generation, slot) = &mut self.places[place as usize];
        *generation = generation.wrapping_add(1);
        *slot = Some(read);
        let token = u64::from(*generation) << 32 | u64::from(place);
        let places = &self.places;
        let rehash = |place: &u32| {
            let read = places[*place as usize].1.as_ref();
            read.map_or(0, |read| hash(read.id))
        };
        self.index.insert_unique(hash(id), place, rehash);
        token
    }

    pub(crate) fn remove(&mut self, token: Token) -> Option<Read<A>> {
        let id = self.get(token)?.id;
        let place = token as u32;
        if let Ok(entry) = self.index.find_entry(hash(id), |other| *other == place) {
            entry.remove();
        }
        self.free.push(place);
        self.places[place as usize].1.take()
    }
}

/// Ids are hashes already, under a key that nobody outside knows.
const fn hash(id: Id) -> u64 {
    id.0 as u64
}

fn is_at<A>(places: &[(u32, Option<Read<A>>)], place: u32, id: Id) -> bool {
    places[place as usize].1.as_ref().is_some_and(|read| read.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_handoff::Version;

    fn claim(version: u64) -> Claim {
        Claim { version: Version(version), owner: [10, 0, 0, 9].into() }
    }

    fn replica(link: u32) -> Replica {
        Replica { link: Some(link), suspect: false, standing: Standing::New }
    }

    fn read(replicas: &[Replica]) -> Read<()> {
        Read::new(Id(1), (), replicas.iter().copied().collect(), None)
    }

    fn three() -> [Replica; 3] {
        [replica(1), replica(2), replica(3)]
    }

    #[test]
    fn asks_one_replica_and_takes_its_claim() {
        let mut read = read(&three());
        assert_eq!(read.next(), Next::Ask(1));
        assert_eq!(read.next(), Next::Wait);
        read.said(Some(1), Said::Holds(claim(7)));
        assert_eq!(read.next(), Next::Over(Verdict::Found(claim(7))));
    }

    #[test]
    fn r6_a_claim_of_who_refuses_the_flow_counts_when_nobody_knows_better() {
        let refuser = claim(7).owner;
        for better in [None, Some(Claim { version: Version(8), owner: [10, 0, 0, 1].into() })] {
            let mut read = Read::new(Id(1), (), three().into_iter().collect(), Some(refuser));
            assert_eq!(read.next(), Next::Ask(1));
            read.said(Some(1), Said::Holds(claim(7)));
            assert_eq!((read.next(), read.next()), (Next::Ask(2), Next::Ask(3)));
            assert_eq!(read.next(), Next::Wait);
            assert_eq!(read.final_verdict(), Verdict::Found(claim(7)), "if nobody answers");
            read.said(Some(2), Said::NotHeld);
            assert_eq!(read.next(), Next::Wait);
            match better {
                Some(better) => read.said(Some(3), Said::Holds(better)),
                None => read.stands(Some(3), Standing::Failed),
            }
            let expected = better.unwrap_or(claim(7));
            assert_eq!(read.next(), Next::Over(Verdict::Found(expected)));
        }
    }

    #[test]
    fn hedges_over_the_others_in_turn() {
        let mut read = read(&three());
        assert_eq!(read.next(), Next::Ask(1));
        assert_eq!(read.hedge(), Some(2));
        assert_eq!(read.hedge(), Some(3));
        assert_eq!(read.hedge(), None);
        assert_eq!(read.next(), Next::Wait);
        read.said(Some(3), Said::Holds(claim(7)));
        assert_eq!(read.next(), Next::Over(Verdict::Found(claim(7))));
    }

    #[test]
    fn r5_not_found_when_all_replicas_say_so() {
        let mut read = read(&three());
        assert_eq!(read.next(), Next::Ask(1));
        read.said(Some(1), Said::NotHeld);
        // Both others at once.
        assert_eq!(read.next(), Next::Ask(2));
        assert_eq!(read.next(), Next::Ask(3));
        assert_eq!(read.next(), Next::Wait);
        read.said(Some(2), Said::NotHeld);
        assert_eq!(read.next(), Next::Wait);
        assert_eq!(read.final_verdict(), Verdict::NotFound);
        read.said(Some(3), Said::NotHeld);
        assert_eq!(read.next(), Next::Over(Verdict::NotFound));
    }

    #[test]
    fn r5_one_in_three_does_not_say_not_found_for_the_others() {
        let mut read = read(&three());
        assert_eq!(read.next(), Next::Ask(1));
        read.stands(Some(1), Standing::Failed);
        assert_eq!(read.next(), Next::Ask(2));
        read.said(Some(2), Said::NotHeld);
        assert_eq!(read.next(), Next::Ask(3));
        read.stands(Some(3), Standing::Failed);
        assert_eq!(read.next(), Next::Over(Verdict::Unknown));
    }

    #[test]
    fn a_suspect_is_asked_last_and_not_waited_for() {
        let suspect = Replica { suspect: true, ..replica(1) };
        let mut read = read(&[suspect, replica(2), replica(3)]);
        assert_eq!(read.next(), Next::Ask(2));
        read.said(Some(2), Said::NotHeld);
        assert_eq!(read.next(), Next::Ask(3));
        assert_eq!(read.next(), Next::Ask(1));
        read.said(Some(3), Said::NotHeld);
        assert_eq!(read.next(), Next::Over(Verdict::NotFound));
    }

    #[test]
    fn two_suspects_are_waited_for_when_the_third_is_not_enough() {
        let suspect = |link| Replica { suspect: true, ..replica(link) };
        let mut read = read(&[suspect(1), suspect(2), replica(3)]);
        assert_eq!(read.next(), Next::Ask(3));
        read.said(Some(3), Said::NotHeld);
        assert_eq!(read.next(), Next::Ask(1));
        assert_eq!(read.next(), Next::Ask(2));
        assert_eq!(read.next(), Next::Wait);
        read.said(Some(1), Said::Holds(claim(1)));
        assert_eq!(read.next(), Next::Over(Verdict::Found(claim(1))));
    }

    #[test]
    fn r8_a_claim_is_not_believed_when_it_was_deleted() {
        let mut read = read(&three());
        read.next();
        read.said(Some(1), Said::Deleted(claim(7)));
        assert_eq!((read.next(), read.next()), (Next::Ask(2), Next::Ask(3)));
        read.said(Some(2), Said::Holds(claim(7)));
        assert_eq!(read.next(), Next::Wait);
        read.said(Some(3), Said::Holds(claim(8)));
        assert_eq!(read.next(), Next::Over(Verdict::Found(claim(8))));
    }

    #[test]
    fn r13_a_dead_owners_record_is_nobodys_for_sure_unless_it_was_deleted() {
        for (deleted, expected) in [(6, Verdict::Orphaned), (8, Verdict::NotFound)] {
            let mut read = read(&three());
            read.next();
            read.said(Some(1), Said::Orphaned(claim(7)));
            assert_eq!((read.next(), read.next()), (Next::Ask(2), Next::Ask(3)));
            read.said(Some(2), Said::Deleted(claim(deleted)));
            read.said(Some(3), Said::NotHeld);
            assert_eq!(read.next(), Next::Over(expected));
        }
    }

    #[test]
    fn a_node_that_is_no_replica_says_nothing_about_the_record() {
        let mut read = read(&three());
        for link in [1, 2, 3] {
            assert_eq!(read.next(), Next::Ask(link));
            match link {
                1 => read.stands(Some(1), Standing::NotReplica),
                _ => read.said(Some(link), Said::NotHeld),
            }
        }
        assert_eq!(read.next(), Next::Walk);
    }

    #[test]
    fn what_we_hold_ourselves_counts() {
        let own = Replica { link: None, ..replica(0) };
        let mut read = read(&[own, replica(2), replica(3)]);
        read.said(None, Said::NotHeld);
        assert_eq!((read.next(), read.next()), (Next::Ask(2), Next::Ask(3)));
        read.said(Some(2), Said::NotHeld);
        read.stands(Some(3), Standing::Failed);
        assert_eq!(read.next(), Next::Over(Verdict::NotFound));
    }

    #[test]
    fn tokens_name_one_read() {
        let mut reads: Reads<()> = Reads::new();
        let tokens: Vec<Token> =
            (0..100).map(|id| reads.insert(Read::new(Id(id), (), Replicas::new(), None))).collect();
        assert_eq!(reads.len(), 100);
        for (id, token) in tokens.iter().enumerate() {
            assert_eq!(reads.get(*token).map(|read| read.id), Some(Id(id as u128)));
            assert!(reads.of(Id(id as u128)).is_some());
            assert!(reads.remove(*token).is_some());
            assert!(reads.of(Id(id as u128)).is_none());
        }
        let again = reads.insert(Read::new(Id(1), (), Replicas::new(), None));
        assert!(tokens.iter().all(|token| reads.get(*token).is_none()));
        assert!(reads.get(again).is_some());
    }
}
