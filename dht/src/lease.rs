//! The owners of records: servers' incarnations under short names, and until when each is
//! believed to live. When the lease of an incarnation ends, all its records end with it, however
//! many, without a look at any of them. Never holds records and never learns of servers by itself.

use std::net::IpAddr;

use crate::place_index::{PlaceIndex, Tag};

/// Owners that can have a name at the same time.
pub(crate) const OWNERS_MAX: usize = 1 << 16;
/// Of these, the ones with one locator. So many restarts within one lease are no server's; none
/// can take all names.
const OWNERS_OF_ONE_MAX: usize = 32;
/// Owners looked at for one whose name can be given anew, when there is no other.
const RECLAIM_AT_ONCE: usize = 64;

/// The name of an owner. Given to another one when nothing bears it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnerSlot(u32);

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The owner of the records that this incarnation of a server has stored.
    Incarnation {
        /// When the server started, as it says.
        incarnation: u64,
        /// When its lease ends: [`NO_END`] while it is a contact.
        ends_at_us: u64,
    },
    /// The owner of what a server has deleted. Needs no lease: tombstones end by themselves.
    Tombstones,
    /// Nothing.
    Free,
}

/// Incarnation of none: no server has started when the Unix epoch began.
const SUPERSEDED: u64 = 0;

/// End of a lease that has none.
pub(crate) const NO_END: u64 = u64::MAX;

/// An owner.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) locator: IpAddr,
    pub(crate) role: Role,
    /// Records or tombstones that bear the name.
    count: u32,
    /// The next one with the same locator, or the next free one.
    next: Option<OwnerSlot>,
}

impl Owner {
    /// Whether the lease has ended, and with it all records.
    pub(crate) fn has_ended(&self, now_us: u64) -> bool {
        match self.role {
            Role::Incarnation { ends_at_us, .. } => ends_at_us <= now_us,
            Role::Tombstones => false,
            Role::Free => true,
        }
    }

    fn is_idle(&self, now_us: u64) -> bool {
        self.count == 0 && (self.role == Role::Tombstones || self.has_ended(now_us))
    }
}

/// The owners and their leases.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    /// Never longer than `owners_max`, for which there is room from the start.
    owners: Vec<Owner>,
    owners_max: usize,
    /// The first owner with each locator.
    firsts: PlaceIndex,
    free: Option<OwnerSlot>,
    in_use: usize,
    cursor: usize,
    lease_us: u64,
    stranger_lease_us: u64,
    refused: u64,
}

impl Leases {
    /// No owners, at most `owners_max`. A lease lasts `lease_us` from when its server was last
    /// known to live: as long as it is a contact, or, if it is none and all that is known of it
    /// are its STOREs, `stranger_lease_us` from the last of these.
    pub(crate) fn new(
        owners_max: usize,
        lease_us: u64,
        stranger_lease_us: u64,
        seed: u64,
    ) -> Leases {
        Leases {
            owners: Vec::with_capacity(owners_max),
            owners_max,
            firsts: PlaceIndex::new(owners_max, seed),
            free: None,
            in_use: 0,
            cursor: 0,
            lease_us,
            stranger_lease_us,
            refused: 0,
        }
    }

    /// Names in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use
    }

    /// How often there was no name for an owner.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    pub(crate) fn get(&self, slot: OwnerSlot) -> &Owner {
        &self.owners[slot.0 as usize]
    }

    /// This incarnation has become a contact: its lease has no end. Earlier ones of the server
    /// are over; their records stay for a lease, in which the new one can store them again.
    /// Returns whether there was a name for it.
    pub(crate) fn begin(&mut self, now_us: u64, locator: IpAddr, incarnation: u64) -> bool {
        let until_us = now_us.saturating_add(self.lease_us);
        self.each_of(locator, |role| {
            if let Role::Incarnation { incarnation: other, ends_at_us } = role {
                let same = *other == incarnation && *ends_at_us > now_us;
                *ends_at_us = if same { NO_END } else { until_us.min(*ends_at_us) };
            }
        });
        let role = Role::Incarnation { incarnation, ends_at_us: NO_END };
        self.find(now_us, locator, incarnation)
            .or_else(|| self.add(now_us, locator, role))
            .is_some()
    }

    /// What this server has stored until now ends with a lease from now, and what it stores from
    /// now on is another owner's.
    pub(crate) fn supersede(&mut self, now_us: u64, locator: IpAddr) {
        let until_us = now_us.saturating_add(self.lease_us);
        self.each_of(locator, |role| {
            if let Role::Incarnation { incarnation, ends_at_us } = role {
                (*incarnation, *ends_at_us) = (SUPERSEDED, until_us.min(*ends_at_us));
            }
        });
    }

    /// The server is a contact no more.
    pub(crate) fn end(&mut self, now_us: u64, locator: IpAddr) {
        let until_us = now_us.saturating_add(self.lease_us);
        self.each_of(locator, |role| match role {
            Role::Incarnation { ends_at_us, .. } if *ends_at_us == NO_END => *ends_at_us = until_us,
            _ => {}
        });
    }

    /// The owner of a record that this incarnation stores now; `None` when there is no name for
    /// it.
    pub(crate) fn storing(
        &mut self,
        now_us: u64,
        locator: IpAddr,
        incarnation: u64,
    ) -> Option<OwnerSlot> {
        let found = self.find(now_us, locator, incarnation);
        let ends_at_us = found.map_or(0, |slot| self.end_of(slot));
        if ends_at_us == NO_END {
            return found;
        }
        // A STORE that the server's restart has overtaken says nothing about the server.
        let is_over = self.of(locator).any(|slot| match self.get(slot).role {
            Role::Incarnation { incarnation: other, ends_at_us } => {
                ends_at_us == NO_END && other > incarnation
            }
            _ => false,
        });
        let lease_us = if is_over { self.lease_us } else { self.stranger_lease_us };
        let ends_at_us = ends_at_us.max(now_us.saturating_add(lease_us));
        let role = Role::Incarnation { incarnation, ends_at_us };
        match found {
            Some(slot) => self.owners[slot.0 as usize].role = role,
            None => return self.add(now_us, locator, role),
        }
        found
    }

    /// The owner of a tombstone that this server leaves; `None` when there is no name for it.
    pub(crate) fn deleting(&mut self, now_us: u64, locator: IpAddr) -> Option<OwnerSlot> {
        let found = self.of(locator).find(|slot| self.get(*slot).role == Role::Tombstones);
        found.or_else(|| self.add(now_us, locator, Role::Tombstones))
    }

    /// One more bears the name.
    pub(crate) fn take(&mut self, slot: OwnerSlot) {
        self.owners[slot.0 as usize].count += 1;
    }

    /// One fewer bears the name. It is free when a sweep comes by.
    pub(crate) fn let_go(&mut self, slot: OwnerSlot) {
        self.owners[slot.0 as usize].count -= 1;
    }

    /// Goes on freeing names that nothing bears, by a slice of at most `limit`.
    pub(crate) fn sweep(&mut self, now_us: u64, limit: usize) {
        for _ in 0..limit.min(self.owners.len()) {
            self.cursor = (self.cursor + 1) % self.owners.len();
            let owner = &self.owners[self.cursor];
            if owner.role != Role::Free && owner.is_idle(now_us) {
                self.forget(OwnerSlot(self.cursor as u32));
            }
        }
    }

    /// The owner that an incarnation is, unless its lease has ended: an end is final, so that
    /// what of its records was swept and what was not yet makes no difference.
    fn find(&self, now_us: u64, locator: IpAddr, incarnation: u64) -> Option<OwnerSlot> {
        self.of(locator).find(|slot| match self.get(*slot).role {
            Role::Incarnation { incarnation: i, ends_at_us } => {
                i == incarnation && ends_at_us > now_us
            }
            _ => false,
        })
    }

    fn end_of(&self, slot: OwnerSlot) -> u64 {
        match self.get(slot).role {
            Role::Incarnation { ends_at_us, .. } => ends_at_us,
            Role::Tombstones | Role::Free => 0,
        }
    }

    /// Gives a name, if there is one.
    fn add(&mut self, now_us: u64, locator: IpAddr, role: Role) -> Option<OwnerSlot> {
        let of_one = self.of(locator).count();
        let slot = if of_one < OWNERS_OF_ONE_MAX { self.free_slot(now_us) } else { None };
        let Some(slot) = slot else {
            self.refused += 1;
            return None;
        };
        let tag = self.tag(locator);
        let next = self.first(tag, locator);
        match next {
            Some(first) => self.firsts.moved(tag, first.0 as usize, slot.0 as usize),
            None => self.firsts.insert(tag, slot.0 as usize),
        }
        self.owners[slot.0 as usize] = Owner { locator, role, count: 0, next };
        self.in_use += 1;
        Some(slot)
    }

    fn free_slot(&mut self, now_us: u64) -> Option<OwnerSlot> {
        if self.free.is_none() && self.owners.len() < self.owners_max {
            let nobody = IpAddr::from([0, 0, 0, 0]);
            let free = Owner { locator: nobody, role: Role::Free, count: 0, next: None };
            self.owners.push(free);
            return Some(OwnerSlot((self.owners.len() - 1) as u32));
        }
        if self.free.is_none() {
            self.sweep(now_us, RECLAIM_AT_ONCE);
        }
        let slot = self.free?;
        self.free = self.get(slot).next;
        Some(slot)
    }

    fn forget(&mut self, slot: OwnerSlot) {
        self.unlink(slot);
        let next = self.free.replace(slot);
        let owner = &mut self.owners[slot.0 as usize];
        (owner.role, owner.next) = (Role::Free, next);
        self.in_use -= 1;
    }

    /// Takes an owner out of the list of those with its locator.
    fn unlink(&mut self, slot: OwnerSlot) {
        let Owner { locator, next, .. } = *self.get(slot);
        let tag = self.tag(locator);
        if self.first(tag, locator) == Some(slot) {
            match next {
                Some(next) => self.firsts.moved(tag, slot.0 as usize, next.0 as usize),
                None => self.firsts.remove(tag, slot.0 as usize),
            }
            return;
        }
        let before = self.of(locator).find(|s| self.get(*s).next == Some(slot));
        if let Some(before) = before {
            self.owners[before.0 as usize].next = next;
        }
    }

    /// The owners with this locator, the latest first.
    fn of(&self, locator: IpAddr) -> impl Iterator<Item = OwnerSlot> + '_ {
        let first = self.first(self.tag(locator), locator);
        std::iter::successors(first, |slot| self.get(*slot).next)
    }

    fn each_of(&mut self, locator: IpAddr, mut change: impl FnMut(&mut Role)) {
        let mut at = self.first(self.tag(locator), locator);
        while let Some(slot) = at {
            let owner = &mut self.owners[slot.0 as usize];
            change(&mut owner.role);
            at = owner.next;
        }
    }

    fn first(&self, tag: Tag, locator: IpAddr) -> Option<OwnerSlot> {
        let first = self.firsts.find(tag, |place| self.owners[place].locator == locator);
        first.map(|place| OwnerSlot(place as u32))
    }

    fn tag(&self, locator: IpAddr) -> Tag {
        let v6 = match locator {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        self.firsts.tag(v6.to_bits())
    }
}
