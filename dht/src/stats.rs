//! What the node counts and measures. Never decides anything.

use std::collections::VecDeque;
use std::net::IpAddr;

use hdrhistogram::Histogram;
use holdfast_net::FlowKey;

macro_rules! counters {
    ($($variant:ident $name:literal $help:literal,)*) => {
        /// Everything that is counted: each drop, refusal and limit, and what was done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Counter {
            $(#[doc = $help] $variant,)*
        }

        impl Counter {
            /// All counters, in the order of [`Counters`].
            pub const ALL: [Counter; [$($name),*].len()] = [$(Counter::$variant),*];

            /// Name of the counter, in snake case, without unit.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)* }
            }

            /// What it counts, in one sentence.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Counter::$variant => $help,)* }
            }
        }
    };
}

counters! {
    DatagramsReceived "datagrams_received" "Datagrams received from the control port.",
    DatagramsSent "datagrams_sent" "Datagrams given to the kernel to send.",
    ReceiveDropped "receive_dropped" "Datagrams that the kernel dropped because the control port's receive buffer was full.",
    ReceiveErrors "receive_errors" "Errors of receiving from the control port.",
    SendWouldBlock "send_would_block" "Times that the socket's buffer was full: what was to be sent waited until there was room.",
    SendErrors "send_errors" "Datagrams not sent for another error, such as no route.",
    LateErrors "late_errors" "Errors, such as ICMP unreachable, that the kernel reported of datagrams it had sent earlier.",
    NotMember "not_member" "Datagrams dropped unread: the source is in none of the members' networks.",
    NotOurs "not_ours" "Datagrams dropped: they do not begin with the protocol's magic.",
    UnknownVersion "unknown_version" "Datagrams dropped: another version of the protocol.",
    Malformed "malformed" "Datagrams dropped: they cannot be decoded.",
    UnknownKey "unknown_key" "Datagrams dropped: sealed with a key whose id is not in our key file.",
    Unverified "unverified" "Datagrams dropped: they do not verify, so they are forged, damaged, or sealed with another key than ours.",
    Replayed "replayed" "Datagrams dropped: copies of one that was received before.",
    TooOld "too_old" "Datagrams dropped: so far behind the sender's newest that they could be copies.",
    OlderIncarnation "older_incarnation" "Datagrams dropped: of an older incarnation of their sender than the newest.",
    TooManyRuns "too_many_runs" "Datagrams dropped before they were verified: too many new incarnations from about this address.",
    SenderLimited "sender_limited" "Datagrams dropped although they were verified: their sender sends more than is allowed.",
    SendersForgotten "senders_forgotten" "Senders forgotten with their replay windows, because there are too many.",
    ForgedLocator "forged_locator" "Datagrams dropped: the locator in them is not their source address.",
    WrongId "wrong_id" "Datagrams dropped: the sender's id is not the hash of its locator, so its id key is not ours.",
    Reflected "reflected" "Datagrams dropped: they bear our own locator.",
    UnmatchedAnswers "unmatched_answers" "Answers dropped: no request waits for them, or at another address.",
    RequestsSent "requests_sent" "Requests sent, retransmissions not included.",
    Retransmissions "retransmissions" "Requests sent again because no answer came in time.",
    RequestsFailed "requests_failed" "Requests given up after their last retransmission.",
    RequestsAbandoned "requests_abandoned" "Requests not answered in time that nobody waits for any more.",
    RequestsRefused "requests_refused" "Requests not sent: the table of requests in flight was full.",
    PingsReceived "pings_received" "PING requests served.",
    StoresReceived "stores_received" "STORE requests served.",
    DeletesReceived "deletes_received" "DELETE requests served.",
    ReleasesReceived "releases_received" "RELEASE requests served.",
    LookupsReceived "lookups_received" "LOOKUP requests served.",
    OperationsLate "operations_late" "Operations dropped: the sender has sent them again or given them up.",
    OperationsRefused "operations_refused" "Operations not queued because too many wait for that peer; they are tried again later.",
    ResultsDropped "results_dropped" "Results dropped because too many wait for that peer; it asks again.",
    OtherIncarnation "other_incarnation" "Batches dropped: meant for an earlier incarnation of ours.",
    OtherPort "other_port" "Batches dropped: the sender's control socket is known by another port; it is looked into.",
    FindNodesReceived "find_nodes_received" "FIND_NODE requests served.",
    FindValuesReceived "find_values_received" "FIND_VALUE requests served.",
    StoresStale "stores_stale" "STORE or DELETE refused: a newer record or tombstone is held.",
    StoresFull "stores_full" "STORE refused: the store is full of live records, or there are too many owners.",
    OwnersRefused "owners_refused" "Owners of records or tombstones refused: too many in all, or incarnations of one server.",
    StoresAhead "stores_ahead" "STORE or DELETE refused: its version is more than an hour ahead of our clock.",
    TombstonesRefused "tombstones_refused" "Tombstones not kept because the store was full.",
    RecordsExpired "records_expired" "Records dropped because the lease of their owner's incarnation had ended.",
    LookupsAsked "lookups_asked" "Lookups asked for by workers.",
    LookupsShared "lookups_shared" "Lookups that waited for one already in flight for the same flow.",
    LookupsLocal "lookups_local" "Lookups answered from our own records, without the network.",
    LookupsHedged "lookups_hedged" "Lookups that asked a further replica because one was slow.",
    LookupsWalked "lookups_walked" "Lookups that had to search for the replicas: we may not know them all, or others know other nodes than we do.",
    LookupsFound "lookups_found" "Lookups over the network that found an owner.",
    LookupsNotFound "lookups_not_found" "Lookups over the network where enough replicas said that nobody owns the flow.",
    LookupsTimedOut "lookups_timed_out" "Lookups over the network where too few replicas answered in time.",
    LookupsRefused "lookups_refused" "Lookups answered TimedOut at once: too many in flight, or waiting for one.",
    LookupsUnsettled "lookups_unsettled" "Lookups answered TimedOut: servers have come, gone or restarted just before, and the replicas may not have the flow's record yet.",
    LookupsNotJoined "lookups_not_joined" "Lookups answered TimedOut: this node has not joined and cannot say that nobody owns the flow.",
    OwnersDead "owners_dead" "Lookups answered NotFound because the owner found is dead and did not come back in time (R13).",
    OwnersAwaited "owners_awaited" "Lookups answered TimedOut because the owner found is dead, and may be a daemon that is started again.",
    OwnersForeign "owners_foreign" "Claims ignored: the owner that a peer named is in none of the members' networks.",
    AnswersDropped "answers_dropped" "Answers to a worker dropped: its ring was full.",
    Published "published" "Sessions published by the workers.",
    PublishesRepeated "publishes_repeated" "Publishes ignored: this version or a newer one is published already.",
    PublishesRefused "publishes_refused" "Publishes refused: the published set is full. The session is not found from elsewhere.",
    PublishesStale "publishes_stale" "STALE answers to our STOREs.",
    PublishesRaised "publishes_raised" "Fresh publishes stored again with a version greater than the one in a STALE answer.",
    PublishesGivenUp "publishes_given_up" "Fresh publishes given up after too many STALE answers, or one from the far future.",
    PublishesSuperseded "publishes_superseded" "Published sessions dropped: another server has a newer record (R12).",
    PublishesRepaired "publishes_repaired" "Published sessions withdrawn because a worker said that it does not hold the flow.",
    Withdrawn "withdrawn" "Sessions withdrawn by the workers.",
    WithdrawsIgnored "withdraws_ignored" "Withdraws ignored: a newer session on the same flow is published (R12).",
    WithdrawsRefused "withdraws_refused" "Withdraws of unknown flows not carried out: the published set is full.",
    StoresRetried "stores_retried" "STOREs or DELETEs whose retransmissions were used up; they are tried again later.",
    StoresRefusedByPeer "stores_refused_by_peer" "STOREs that a replica refused because it is full or its clock is behind.",
    DeletesGivenUp "deletes_given_up" "Replicas at which a record could not be deleted; it expires there.",
    RecordsMoved "records_moved" "STOREs sent because the closest nodes of a record had changed.",
    RecordsRefreshed "records_refreshed" "Published records stored again before they expire.",
    HoldersForgotten "holders_forgotten" "Former replicas of a record forgotten because it moved too often; it expires there.",
    MessagesDropped "messages_dropped" "Control messages dropped because too many wait to be sent.",
    PeersAdded "peers_added" "Nodes that entered the routing table.",
    PeersSuspected "peers_suspected" "Times that a peer became suspect: it missed a request after having answered, or others said so.",
    PeersCleared "peers_cleared" "Times that a suspect was heard, or proved those wrong who suspect it.",
    PeersDead "peers_dead" "Peers dropped as dead.",
    PeersGivenUp "peers_given_up" "Dead peers that did not come back in time: their sessions are nobody's.",
    PeersLeft "peers_left" "Peers that said that they stop.",
    LeasesEnded "leases_ended" "Peers that had left and did not come back within the lease: their sessions are nobody's.",
    PeersRestarted "peers_restarted" "Peers found to be a new incarnation.",
    Forgotten "forgotten" "Times that a peer had taken us for dead: our records are stored there again.",
    PeersRefused "peers_refused" "Nodes not taken: too many different addresses seen.",
    BucketsFull "buckets_full" "Nodes that found their k-bucket full and wait in its replacement cache.",
    ProbesSent "probes_sent" "PINGs sent in turn to peers that are no suspects.",
    ChecksSent "checks_sent" "PINGs sent to suspects, and to peers for others that asked.",
    PingReqsSent "ping_reqs_sent" "PING_REQs sent: a peer did not answer us.",
    PingReqsRefused "ping_reqs_refused" "PING_REQs not sent: too many at once, or there was nobody to ask.",
    PingReqsReceived "ping_reqs_received" "PING_REQ requests served.",
    PingReqsIgnored "ping_reqs_ignored" "PING_REQ requests not served: about an impossible peer, or too many wait for others.",
    PongsRelayed "pongs_relayed" "Answers to PING_REQ sent.",
    PeersVouchedFor "peers_vouched_for" "Answers to PING_REQ received: a peer that does not answer us is alive.",
    SuspicionsSpread "suspicions_spread" "Times that all peers were told that one is suspect.",
    SuspicionsHeard "suspicions_heard" "SUSPECT messages received.",
    SuspicionsIgnored "suspicions_ignored" "SUSPECT messages ignored: about no contact of ours, an older incarnation, or one just heard.",
    Refutations "refutations" "Times that all peers were told that we are alive, because one suspected us.",
    AlivesReceived "alives_received" "ALIVE messages received.",
    BroadcastsRefused "broadcasts_refused" "Messages to all peers not sent: too many waited.",
    Stalls "stalls" "Times that this node did not run for so long that it does not blame its peers for what they missed.",
    AfterLeave "after_leave" "Datagrams dropped: their sender had left before, or we have.",
    ContactsIgnored "contacts_ignored" "Addresses of unknown nodes not looked into: too many wait for it.",
    NotMineSent "not_mine_sent" "NOT_MINE sent to servers that tunnelled a flow to us that we do not hold.",
    NotMineToAll "not_mine_to_all" "NOT_MINE sent to all servers, because a rewritten packet does not tell its sender.",
    NotMineUnsent "not_mine_unsent" "The same, but too many messages waited.",
    NotMineReceived "not_mine_received" "NOT_MINE received.",
    SupersededSent "superseded_sent" "SUPERSEDED sent: a record gave its place to another server's newer one (R12).",
    SupersededUnsent "superseded_unsent" "SUPERSEDED not sent because too many control messages wait.",
    SupersededReceived "superseded_received" "SUPERSEDED received.",
    SupersededIgnored "superseded_ignored" "SUPERSEDED ignored: another replica had said it before, or the claim in it is none that can outdo a session that we publish.",
    OwnerDeadDropped "owner_dead_dropped" "Deaths not passed on: the worker's ring was full; redirects end by being idle.",
    NotMineDropped "not_mine_dropped" "NOT_MINE not passed on: the worker's ring was full.",
    SupersededDropped "superseded_dropped" "Superseded sessions not passed on: the worker's ring was full; it keeps the session until that ends.",
    CommandsRefused "commands_refused" "Commands of the control thread refused: a limit was reached.",
}

/// A value for each [`Counter`]; they only grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Counters {
        Counters([0; Counter::ALL.len()])
    }
}

impl Counters {
    /// The value of one counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// All counters with their values, in the order of [`Counter::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.into_iter().zip(self.0)
    }

    pub(crate) fn count(&mut self, counter: Counter) {
        self.0[counter as usize] += 1;
    }

    pub(crate) fn count_many(&mut self, counter: Counter, times: u64) {
        self.0[counter as usize] += times;
    }

    pub(crate) fn set(&mut self, counter: Counter, value: u64) {
        self.0[counter as usize] = value;
    }

    pub(crate) fn add(&mut self, other: &Counters) {
        for (value, more) in self.0.iter_mut().zip(other.0) {
            *value += more;
        }
    }
}

/// How things stand now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Nodes in the routing table.
    pub peers: u64,
    /// Of these, suspects: they missed the last request, or others say so.
    pub peers_suspect: u64,
    /// Peers that said that they stop, and whose lease has not ended: their sessions are still
    /// theirs.
    pub peers_away: u64,
    /// Peers that died, or stayed away for longer than the lease, and are looked out for.
    pub peers_dead: u64,
    /// Live records held, for others and for ourselves.
    pub records: u64,
    /// Tombstones held.
    pub tombstones: u64,
    /// Records and tombstones that can be held.
    pub records_max: u64,
    /// Owners of these, and contacts, in the store's memory.
    pub owners: u64,
    /// Sessions published, as far as not withdrawn.
    pub published: u64,
    /// Of these, the ones that not all replicas have acknowledged.
    pub published_unacked: u64,
    /// Sessions published, whose records former replicas still hold.
    pub published_moving: u64,
    /// Withdrawn sessions whose records are being deleted.
    pub withdrawing: u64,
    /// Lookups in flight.
    pub lookups_in_flight: u64,
    /// Of these, the ones that search for nodes: not one hop.
    pub walks_in_flight: u64,
    /// Requests in flight, of all kinds.
    pub requests_in_flight: u64,
    /// Of these, operations that were sent in batches, to all peers together.
    pub operations_in_flight: u64,
    /// Operations that wait to be sent, to all peers together.
    pub operations_queued: u64,
    /// Whether the node has joined the DHT (or stands alone by configuration).
    pub joined: bool,
    /// The kernel's buffer of what the control port received, in bytes as the kernel counts them.
    /// 0 without a service; so for the next.
    pub receive_buffer_bytes: u64,
    /// The kernel's buffer of what the control port sends.
    pub send_buffer_bytes: u64,
}

/// A distribution of times in microseconds, exact to two digits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    /// How many were measured.
    pub count: u64,
    /// The least, in µs; 0 when there is none. So for the others.
    pub min: u64,
    /// The median.
    pub p50: u64,
    /// 90 in 100 are not greater.
    pub p90: u64,
    /// 99 in 100 are not greater.
    pub p99: u64,
    /// The greatest.
    pub max: u64,
    /// Value in µs and how many had it, ascending, fewer than 3,000: distributions of
    /// several servers are merged by adding the counts of equal values.
    pub buckets: Vec<(u64, u64)>,
}

/// Times above this, a minute, are recorded as a minute.
const TIME_US_MAX: u64 = 60_000_000;

/// A distribution that is being measured.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Times {
        Times::new()
    }
}

impl Times {
    /// One of which nothing was measured yet.
    #[must_use]
    pub fn new() -> Times {
        // Two digits from 1 µs to a minute: bounds that hdrhistogram accepts.
        Times(Histogram::new_with_bounds(1, TIME_US_MAX, 2).expect("constant bounds"))
    }

    /// Takes a time in microseconds: at least 1, at most a minute.
    pub fn record(&mut self, time_us: u64) {
        self.0.saturating_record(time_us.clamp(1, TIME_US_MAX));
    }

    /// What was measured so far.
    #[must_use]
    pub fn distribution(&self) -> Distribution {
        if self.0.is_empty() {
            return Distribution::default();
        }
        let buckets = self.0.iter_recorded();
        Distribution {
            count: self.0.len(),
            min: self.0.min(),
            p50: self.0.value_at_quantile(0.5),
            p90: self.0.value_at_quantile(0.9),
            p99: self.0.value_at_quantile(0.99),
            max: self.0.max(),
            buckets: buckets.map(|b| (b.value_iterated_to(), b.count_at_value())).collect(),
        }
    }
}

/// Counters, gauges and distributions of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// What was done and refused since start.
    pub counters: Counters,
    /// How things stand now.
    pub gauges: Gauges,
    /// The paper's setting time: from the moment the first STORE of a publish is sent until all
    /// replicas of that record have acknowledged it, retransmissions included. Only first
    /// publishes of a session count (no refresh, no move to another replica), and only those
    /// that have a replica other than ourselves.
    pub setting_time_us: Distribution,
    /// The paper's look-up time: from the moment a lookup's first request is sent until its
    /// result is there, for workers' lookups over the network that found an owner.
    pub lookup_time_found_us: Distribution,
    /// The same for lookups where enough replicas said that nobody owns the flow.
    pub lookup_time_not_found_us: Distribution,
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has an owner.
    Owner,
    /// Enough replicas say that nobody owns it.
    NotFound,
    /// Too few replicas answered in time.
    TimedOut,
}

/// A worker's lookup, as the journal keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookupRecord {
    /// The flow.
    pub flow: FlowKey,
    /// When the worker asked, in microseconds since the Unix epoch.
    pub asked_at_unix_us: u64,
    /// From the core taking the question to its answer, in microseconds.
    pub duration_us: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Locator of the owner, if there is one.
    pub owner: Option<IpAddr>,
}

/// Lookups that the journal keeps.
pub const JOURNAL_MAX: usize = 4096;

/// The last workers' lookups; a new one overwrites the oldest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal(VecDeque<LookupRecord>);

impl Journal {
    pub(crate) fn push(&mut self, record: LookupRecord) {
        if self.0.len() == JOURNAL_MAX {
            self.0.pop_front();
        }
        self.0.push_back(record);
    }

    /// The last `limit` lookups, the newest first.
    pub(crate) fn recent(&self, limit: usize) -> Vec<LookupRecord> {
        self.0.iter().rev().take(limit).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn counters_have_names_and_help_of_their_own() {
        let names: BTreeSet<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        for counter in Counter::ALL {
            assert!(counter.help().ends_with('.'), "{}", counter.name());
            let snake = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(counter.name().chars().all(snake), "{}", counter.name());
        }
        let mut counters = Counters::default();
        counters.count(Counter::CommandsRefused);
        assert_eq!(counters.get(Counter::CommandsRefused), 1);
        assert_eq!(counters.iter().map(|(_, n)| n).sum::<u64>(), 1);
    }

    #[test]
    fn distributions_merge_by_adding_buckets() {
        let (mut left, mut right, mut both) = (Times::new(), Times::new(), Times::new());
        for time_us in [0, 7, 150, 150, 90_000_000] {
            left.record(time_us);
            both.record(time_us);
        }
        for time_us in [151, 3000] {
            right.record(time_us);
            both.record(time_us);
        }
        let mut merged = std::collections::BTreeMap::new();
        for (value, count) in [left, right].iter().flat_map(|t| t.distribution().buckets) {
            *merged.entry(value).or_insert(0) += count;
        }
        let both = both.distribution();
        assert_eq!(both.count, 7);
        assert_eq!(merged.into_iter().collect::<Vec<_>>(), both.buckets);
        assert_eq!(Times::new().distribution(), Distribution::default());
    }

    #[test]
    fn distributions_are_bounded() {
        let mut times = Times::new();
        let mut time_us = 1;
        while time_us < 2 * TIME_US_MAX {
            times.record(time_us);
            time_us += 1 + time_us / 300;
        }
        let buckets = times.distribution().buckets.len();
        assert!(buckets < 3000, "{buckets}");
    }

    #[test]
    fn the_journal_overwrites_the_oldest() {
        let mut journal = Journal::default();
        for n in 0..JOURNAL_MAX as u64 + 2 {
            journal.push(LookupRecord {
                flow: FlowKey::tcp_v4([20, 1, 1, 1], 1, [192, 168, 0, 1], 80),
                asked_at_unix_us: n,
                duration_us: 1,
                outcome: Outcome::NotFound,
                owner: None,
            });
        }
        let all = journal.recent(usize::MAX);
        assert_eq!(all.len(), JOURNAL_MAX);
        assert_eq!(all[0].asked_at_unix_us, JOURNAL_MAX as u64 + 1);
        assert_eq!(all[JOURNAL_MAX - 1].asked_at_unix_us, 2);
        assert_eq!(journal.recent(1).len(), 1);
    }
}
