//! One iterative lookup: whom to ask next, and what the answers amount to (section 2.3 of the
//! Kademlia paper, without its round barrier). Never sends anything and knows no time.

use std::net::SocketAddr;

use arrayvec::ArrayVec;

use crate::id::Id;
use crate::placement::{Placement, Rank};
use crate::record::Claim;

/// Nodes that one lookup keeps in mind.
pub const CANDIDATES_MAX: usize = 32;

/// What a lookup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Goal {
    /// The nodes closest to an id: ends when the closest known have answered.
    Nodes,
    /// The replicas of a record: ends when the best known have answered.
    Replicas,
    /// The owner of a flow: ends with the first claim found.
    Owner,
    /// What each replica of a flow says: ends when all have answered or failed.
    Survey,
}

/// What a node said of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// This claim stands.
    Holds(Claim),
    /// This claim was deleted.
    Deleted(Claim),
    /// This server owned the record, and has died for good (R13).
    Orphaned(Claim),
    /// It knows nothing of it.
    NotHeld,
}

/// How far the lookup is with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Not asked.
    New,
    /// Asked.
    Asked,
    /// Answered.
    Said(Said),
    /// Did not answer.
    Failed,
}

/// A node that the lookup knows of.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its id.
    pub id: Id,
    /// Its control socket.
    pub address: SocketAddr,
    /// It missed its last request: asked after the others, and not waited for.
    pub suspect: bool,
    /// How far we are with it.
    pub progress: Progress,
    /// From the request to its answer, in microseconds; `None` before that, and of ourselves.
    pub rtt_us: Option<u64>,
}

impl Candidate {
    /// A node that was not asked yet.
    #[must_use]
    pub const fn new(id: Id, address: SocketAddr, suspect: bool) -> Candidate {
        Candidate { id, address, suspect, progress: Progress::New, rtt_us: None }
    }
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The greatest claim heard, which stands.
    Found(Claim),
    /// Enough of the closest nodes said that there is none.
    NotFound,
    /// The same, and its owner has died for good (R13).
    Orphaned,
    /// Too few of them said anything.
    Unknown,
}

/// The state of a lookup.
#[derive(Debug, Clone)]
pub struct Lookup {
    target: Id,
    goal: Goal,
    placement: Placement,
    /// Closest nodes that have to answer.
    width: usize,
    alpha: usize,
    in_flight: usize,
    /// Sorted by rank: by distance to the target, or by who is its replica first.
    candidates: ArrayVec<(Rank, Candidate), CANDIDATES_MAX>,
}

impl Lookup {
    /// A lookup that knows nobody yet, of the `width` nodes closest to `target`, with `alpha`
    /// requests in flight.
    #[must_use]
    pub fn new(target: Id, goal: Goal, placement: Placement, width: usize, alpha: usize) -> Lookup {
        let placement = match goal {
            Goal::Nodes => Placement::PLAIN,
            Goal::Replicas | Goal::Owner | Goal::Survey => placement,
        };
        Lookup { target, goal, placement, width, alpha, in_flight: 0, candidates: ArrayVec::new() }
    }

    /// Tells the lookup of a node. Of too many, the farthest is forgotten.
    pub fn learn(&mut self, candidate: Candidate) {
        let rank = self.placement.rank(self.target, candidate.id);
        let Err(place) = self.candidates.binary_search_by_key(&rank, |c| c.0) else {
            return;
        };
        if self.candidates.is_full() {
            let last = self.candidates.len() - 1;
            let last_is_idle = self.candidates[last].1.progress != Progress::Asked;
            if place == self.candidates.len() || !last_is_idle {
                return;
            }
            self.candidates.pop();
        }
        self.candidates.insert(place, (rank, candidate));
    }

    /// Whom to ask now, if anyone; counts as asked.
    pub fn ask(&mut self) -> Option<(Id, SocketAddr)> {
        if self.in_flight >= self.alpha {
            return None;
        }
        let span = self.span();
        let new = |c: &&mut (Rank, Candidate)| c.1.progress == Progress::New;
        let unasked = self.candidates[..span].iter_mut().filter(new);
        // Closest first, suspects last: false < true, and the order among equals is kept.
        let (_, candidate) = unasked.min_by_key(|(_, c)| c.suspect)?;
        candidate.progress = Progress::Asked;
        self.in_flight += 1;
        Some((candidate.id, candidate.address))
    }

    /// A node that was asked has answered. Tell the nodes that it named first.
    pub fn answered(&mut self, id: Id, said: Said) {
        self.progress(id, Progress::Said(said));
    }

    /// How long a node took to answer, in microseconds.
    pub fn measured(&mut self, id: Id, rtt_us: u64) {
        if let Some((_, candidate)) = self.candidates.iter_mut().find(|(_, c)| c.id == id) {
            candidate.rtt_us = Some(rtt_us);
        }
    }

    /// A node that was asked will not answer.
    pub fn failed(&mut self, id: Id) {
        self.progress(id, Progress::Failed);
    }

    fn progress(&mut self, id: Id, progress: Progress) {
        let asked = |c: &&mut (Rank, Candidate)| c.1.id == id && c.1.progress == Progress::Asked;
        if let Some((_, candidate)) = self.candidates.iter_mut().find(asked) {
            candidate.progress = progress;
            candidate.suspect &= progress == Progress::Failed;
            self.in_flight -= 1;
        }
    }

    /// The result, once there is one.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        let closest = &self.candidates[..self.width.min(self.candidates.len())];
        let open = |p: Progress| matches!(p, Progress::New | Progress::Asked);
        let span = &self.candidates[..self.span()];
        let done = span.iter().all(|(_, c)| !open(c.progress));
        match self.goal {
            Goal::Survey | Goal::Nodes | Goal::Replicas => done.then(|| self.final_verdict()),
            Goal::Owner => {
                if let Some(claim) = self.claim() {
                    return Some(Verdict::Found(claim));
                }
                let waits = |c: &Candidate| open(c.progress) && !c.suspect;
                let waiting = span.iter().any(|(_, c)| waits(c));
                if !waiting && !closest.is_empty() && self.is_quorum() {
                    return Some(Verdict::NotFound);
                }
                done.then(|| self.final_verdict())
            }
        }
    }

    /// The result if nobody answers any more.
    #[must_use]
    pub fn final_verdict(&self) -> Verdict {
        match self.claim() {
            Some(claim) => Verdict::Found(claim),
            None if self.is_quorum() => Verdict::NotFound,
            None => Verdict::Unknown,
        }
    }

    /// The nodes among the closest ones that had to answer, closest first.
    pub fn closest(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates[..self.span()].iter().map(|(_, c)| c)
    }

    /// Whether a majority of the closest nodes, the failed and suspect ones included, said that
    /// no claim stands. That these are the closest *known* ones keeps a server that lost touch
    /// with all replicas from saying that nobody owns the flow.
    fn is_quorum(&self) -> bool {
        let closest = &self.candidates[..self.width.min(self.candidates.len())];
        let said_no = |c: &&(Rank, Candidate)| matches!(c.1.progress, Progress::Said(_));
        2 * closest.iter().filter(said_no).count() > closest.len()
    }

    /// The greatest claim heard, whether it stands or not.
    #[must_use]
    pub fn heard(&self) -> Option<Claim> {
        let claims = self.candidates.iter().filter_map(|(_, c)| match c.progress {
            Progress::Said(Said::Holds(claim) | Said::Deleted(claim) | Said::Orphaned(claim)) => {
                Some(claim)
            }
            _ => None,
        });
        claims.max()
    }

    /// The greatest claim heard, unless it was deleted.
    fn claim(&self) -> Option<Claim> {
        let said = self.candidates.iter().filter_map(|(_, c)| match c.progress {
            Progress::Said(said) => Some(said),
            _ => None,
        });
        let (mut held, mut deleted) = (None, None);
        for said in said {
            match said {
                Said::Holds(claim) => held = held.max(Some(claim)),
                Said::Deleted(claim) | Said::Orphaned(claim) => {
                    deleted = deleted.max(Some(claim));
                }
                Said::NotHeld => {}
            }
        }
        held.filter(|_| held > deleted)
    }

    /// How many of the candidates are in play: the closest ones up to the `width`-th that can
    /// be expected to answer.
    fn span(&self) -> usize {
        let mut expected = 0;
        let enough = self.candidates.iter().position(|(_, c)| {
            expected += usize::from(c.progress != Progress::Failed && !c.suspect);
            expected == self.width
        });
        enough.map_or(self.candidates.len(), |place| place + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_handoff::Version;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const TARGET: Id = Id(0);

    /// A node at this distance to the target.
    fn node(distance: u128) -> Candidate {
        Candidate::new(Id(distance), ([10, 0, 0, 1], 7000).into(), false)
    }

    fn suspect(distance: u128) -> Candidate {
        Candidate { suspect: true, ..node(distance) }
    }

    fn claim(version: u64) -> Claim {
        Claim { version: Version(version), owner: [10, 0, 0, 9].into() }
    }

    /// A lookup of three replicas with three requests in flight.
    fn lookup(goal: Goal, candidates: &[Candidate]) -> Lookup {
        let mut lookup = Lookup::new(TARGET, goal, Placement::PLAIN, 3, 3);
        for candidate in candidates {
            lookup.learn(*candidate);
        }
        lookup
    }

    /// Asks all that the lookup wants asked, and says whom.
    fn ask(lookup: &mut Lookup) -> Vec<u128> {
        std::iter::from_fn(|| lookup.ask()).map(|(id, _)| id.0).collect()
    }

    fn five() -> [Candidate; 5] {
        [node(5), node(3), node(1), node(4), node(2)]
    }

    #[test]
    fn asks_the_closest_and_takes_the_first_claim() {
        let mut lookup = lookup(Goal::Owner, &five());
        assert_eq!(ask(&mut lookup), [1, 2, 3]);
        assert_eq!(lookup.verdict(), None);
        lookup.answered(Id(3), Said::Holds(claim(7)));
        assert_eq!(lookup.verdict(), Some(Verdict::Found(claim(7))));
    }

    #[test]
    fn r5_not_found_when_all_of_the_closest_say_so() {
        let mut lookup = lookup(Goal::Owner, &five());
        ask(&mut lookup);
        lookup.answered(Id(1), Said::NotHeld);
        lookup.answered(Id(2), Said::NotHeld);
        assert_eq!(lookup.verdict(), None);
        assert_eq!(lookup.final_verdict(), Verdict::NotFound);
        lookup.answered(Id(3), Said::NotHeld);
        assert_eq!(lookup.verdict(), Some(Verdict::NotFound));
        assert_eq!(ask(&mut lookup), []);
    }

    #[test]
    fn r5_one_in_three_does_not_say_not_found_for_the_others() {
        let mut lookup = lookup(Goal::Owner, &five());
        ask(&mut lookup);
        lookup.answered(Id(1), Said::NotHeld);
        lookup.failed(Id(2));
        lookup.failed(Id(3));
        // The next ones may hold it, but that they do not says nothing.
        assert_eq!(ask(&mut lookup), [4, 5]);
        lookup.answered(Id(4), Said::NotHeld);
        lookup.answered(Id(5), Said::NotHeld);
        assert_eq!(lookup.verdict(), Some(Verdict::Unknown));
    }

    #[test]
    fn r5_two_in_three_do_when_the_third_has_failed() {
        let mut lookup = lookup(Goal::Owner, &[node(1), node(2), node(3)]);
        ask(&mut lookup);
        lookup.answered(Id(1), Said::NotHeld);
        lookup.answered(Id(3), Said::NotHeld);
        assert_eq!(lookup.verdict(), None);
        lookup.failed(Id(2));
        assert_eq!(lookup.verdict(), Some(Verdict::NotFound));
    }

    #[test]
    fn a_suspect_is_asked_last_and_not_waited_for() {
        let mut lookup = lookup(Goal::Owner, &[suspect(1), node(2), node(3), node(4)]);
        assert_eq!(ask(&mut lookup), [2, 3, 4]);
        lookup.answered(Id(2), Said::NotHeld);
        assert_eq!(ask(&mut lookup), [1]);
        lookup.answered(Id(3), Said::NotHeld);
        lookup.answered(Id(4), Said::NotHeld);
        assert_eq!(lookup.verdict(), Some(Verdict::NotFound));
    }

    #[test]
    fn r5_suspects_are_waited_for_when_the_others_are_too_few() {
        let mut lookup = lookup(Goal::Owner, &[suspect(1), suspect(2), node(3), node(4), node(5)]);
        ask(&mut lookup);
        for id in [3, 4, 5] {
            lookup.answered(Id(id), Said::NotHeld);
        }
        assert_eq!(lookup.verdict(), None);
        assert_eq!(ask(&mut lookup), [1, 2]);
        lookup.answered(Id(2), Said::Holds(claim(7)));
        assert_eq!(lookup.verdict(), Some(Verdict::Found(claim(7))));
    }

    #[test]
    fn r8_a_deletion_beats_the_claim_that_it_deletes() {
        let mut lookup = lookup(Goal::Owner, &[node(1), node(2), node(3)]);
        ask(&mut lookup);
        lookup.answered(Id(1), Said::Deleted(claim(7)));
        lookup.answered(Id(2), Said::Holds(claim(7)));
        assert_eq!(lookup.verdict(), None);
        lookup.answered(Id(3), Said::Holds(claim(8)));
        assert_eq!(lookup.verdict(), Some(Verdict::Found(claim(8))));
    }

    #[test]
    fn r12_a_survey_hears_all_and_takes_the_greatest() {
        let mut lookup = lookup(Goal::Survey, &five());
        ask(&mut lookup);
        lookup.answered(Id(1), Said::Holds(claim(8)));
        lookup.answered(Id(2), Said::Holds(claim(7)));
        assert_eq!(lookup.verdict(), None);
        lookup.answered(Id(3), Said::NotHeld);
        assert_eq!(lookup.verdict(), Some(Verdict::Found(claim(8))));
        assert_eq!(lookup.closest().count(), 3);
    }

    #[test]
    fn knowing_nobody_is_no_answer() {
        assert_eq!(lookup(Goal::Owner, &[]).verdict(), Some(Verdict::Unknown));
        let mut own = node(1);
        own.progress = Progress::Said(Said::NotHeld);
        assert_eq!(lookup(Goal::Owner, &[own]).verdict(), Some(Verdict::NotFound));
    }

    #[test]
    fn walks_towards_the_target() {
        let mut lookup = lookup(Goal::Nodes, &[node(1000)]);
        assert_eq!(ask(&mut lookup), [1000]);
        for closer in [400, 300] {
            lookup.learn(node(closer));
        }
        lookup.answered(Id(1000), Said::NotHeld);
        assert_eq!(ask(&mut lookup), [300, 400]);
        lookup.learn(node(20));
        lookup.answered(Id(300), Said::NotHeld);
        // No round barrier: 400 has not answered yet.
        assert_eq!(ask(&mut lookup), [20]);
        lookup.answered(Id(20), Said::NotHeld);
        assert_eq!(lookup.verdict(), None);
        lookup.answered(Id(400), Said::NotHeld);
        assert_eq!(lookup.verdict(), Some(Verdict::NotFound));
        let closest: Vec<u128> = lookup.closest().map(|c| c.id.0).collect();
        assert_eq!(closest, [20, 300, 400]);
    }

    proptest! {
        /// In whatever order nodes are named, answer or fail: the lookup ends, asks no node
        /// twice, never has more than alpha in flight, and ends with the closest that answer.
        #[test]
        fn ends_with_the_closest_that_answer(
            known in prop::collection::vec(1..60u128, 1..4),
            names in prop::collection::vec(prop::collection::vec(1..60u128, 0..6), 60),
            dead in prop::collection::btree_set(1..60u128, 0..10),
            alpha in 1..5usize,
            order in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut lookup = Lookup::new(TARGET, Goal::Nodes, Placement::PLAIN, 3, alpha);
            let mut reached: BTreeMap<u128, bool> = BTreeMap::new();
            for id in known {
                lookup.learn(node(id));
            }
            let (mut flying, mut asked, mut order) = (Vec::new(), Vec::new(), order.into_iter());
            loop {
                flying.extend(ask(&mut lookup));
                prop_assert!(flying.len() <= alpha);
                if lookup.verdict().is_some() {
                    break;
                }
                let Some(order) = order.next() else {
                    panic!("does not end: {asked:?}");
                };
                prop_assert!(!flying.is_empty());
                let id = flying.swap_remove(order.index(flying.len()));
                prop_assert!(!asked.contains(&id));
                asked.push(id);
                reached.insert(id, !dead.contains(&id));
                if dead.contains(&id) {
                    lookup.failed(Id(id));
                } else {
                    for named in &names[id as usize] {
                        lookup.learn(node(*named));
                    }
                    lookup.answered(Id(id), Said::NotHeld);
                }
            }
            let answered = reached.iter().filter(|(_, alive)| **alive).map(|(id, _)| *id);
            let closest: Vec<u128> = answered.take(3).collect();
            let said = |c: &&Candidate| matches!(c.progress, Progress::Said(_));
            let told: Vec<u128> = lookup.closest().filter(said).map(|c| c.id.0).collect();
            prop_assert_eq!(told, closest);
        }
    }
}
