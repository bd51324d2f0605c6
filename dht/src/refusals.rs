//! Who has just said that a flow is not its own (R6). Bounded: each place remembers one flow, the
//! last one that fell into it.

use std::net::IpAddr;

use crate::id::Id;

/// Flows remembered at the same time, at most.
const PLACES: usize = 4096;
/// For how long, in µs: the owner's record has reached its replicas by then, or never will.
const REMEMBERED_US: u64 = 5_000_000;

#[derive(Debug, Clone, Copy)]
struct Refusal {
    id: Id,
    owner: IpAddr,
    until_us: u64,
}

/// The flows, by the ids of their records.
#[derive(Debug, Clone)]
pub(crate) struct Refusals(Box<[Option<Refusal>]>);

impl Default for Refusals {
    fn default() -> Refusals {
        Refusals(vec![None; PLACES].into())
    }
}

impl Refusals {
    /// Notes that `owner` refuses a flow.
    pub(crate) fn note(&mut self, id: Id, owner: IpAddr, now_us: u64) {
        self.0[place(id)] = Some(Refusal { id, owner, until_us: now_us + REMEMBERED_US });
    }

    /// Who refused a flow a moment ago.
    pub(crate) fn of(&self, id: Id, now_us: u64) -> Option<IpAddr> {
        let refusal = self.0[place(id)].filter(|r| r.id == id && now_us < r.until_us)?;
        Some(refusal.owner)
    }
}

/// Ids are hashes already, under a key that nobody outside knows.
const fn place(id: Id) -> usize {
    id.0 as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r6_refusals_are_of_one_flow_and_end() {
        let (owner, mut refusals) = ([10, 0, 0, 1].into(), Refusals::default());
        refusals.note(Id(7), owner, 1000);
        assert_eq!(refusals.of(Id(7), 1000), Some(owner));
        assert_eq!(refusals.of(Id(7 + PLACES as u128), 1000), None);
        assert_eq!(refusals.of(Id(7), 1000 + REMEMBERED_US), None);
    }
}
