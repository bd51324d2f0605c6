//! One iterative lookup: whom to ask next, and what the answers amount to (section 2.3 of the
//! Kademlia paper, without its round barrier). Never sends anything and knows no time.

use std::net::SocketAddr;

use arrayvec::ArrayVec;

use crate::id::{Distance, Id};
use crate::record::Claim;

/// Nodes that one lookup keeps in mind.
pub const CANDIDATES_MAX: usize = 32;

/// What a lookup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Goal {
    /// The nodes closest to an id: ends when the closest known have answered.
    Nodes,
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
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The greatest claim heard, which stands.
    Found(Claim),
    /// Enough of the closest nodes said that there is none.
    NotFound,
    /// Too few of them said anything.
    Unknown,
}

/// The state of a lookup.
#[derive(Debug)]
pub struct Lookup {
    target: Id,
    goal: Goal,
    /// Closest nodes that have to answer.
    width: usize,
    alpha: usize,
    in_flight: usize,
    /// Sorted by distance to the target.
    candidates: ArrayVec<(Distance, Candidate), CANDIDATES_MAX>,
}

impl Lookup {
    /// A lookup that knows nobody yet, of the `width` nodes closest to `target`, with `alpha`
    /// requests in flight.
    #[must_use]
    pub fn new(target: Id, goal: Goal, width: usize, alpha: usize) -> Lookup {
        Lookup { target, goal, width, alpha, in_flight: 0, candidates: ArrayVec::new() }
    }

    /// Tells the lookup of a node. Of too many, the farthest is forgotten.
    pub fn learn(&mut self, candidate: Candidate) {
        let distance = self.target.distance(candidate.id);
        let Err(place) = self.candidates.binary_search_by_key(&distance, |c| c.0) else {
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
        self.candidates.insert(place, (distance, candidate));
    }

    /// Whom to ask now, if anyone; counts as asked.
    pub fn ask(&mut self) -> Option<(Id, SocketAddr)> {
        if self.in_flight >= self.alpha {
            return None;
        }
        let span = self.span();
        let new = |c: &&mut (Distance, Candidate)| c.1.progress == Progress::New;
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

    /// A node that was asked will not answer.
    pub fn failed(&mut self, id: Id) {
        self.progress(id, Progress::Failed);
    }

    fn progress(&mut self, id: Id, progress: Progress) {
        let asked =
            |c: &&mut (Distance, Candidate)| c.1.id == id && c.1.progress == Progress::Asked;
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
            Goal::Survey | Goal::Nodes => done.then(|| self.final_verdict()),
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
        let said_no = |c: &&(Distance, Candidate)| matches!(c.1.progress, Progress::Said(_));
        2 * closest.iter().filter(said_no).count() > closest.len()
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
                Said::Deleted(claim) => deleted = deleted.max(Some(claim)),
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
