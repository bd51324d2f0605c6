//! The states of an announced prefix, and what moves it from one to the next. Never looks at
//! anything, and never tells anybody.
//! `docs/guide/announce.md` draws them.

use crate::announce::Route;
use crate::protocol::DrainMode;
pub use crate::protocol::HealthState as State;

/// What is known when a state is left or kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's sockets have been read.
    pub kernel_read: bool,
    /// The server has joined the DHT, and what the kernel held is published.
    pub published: bool,
    /// Whether the prefix's services answer; `None` until each has been checked.
    pub up: Option<bool>,
    /// The uplink has carrier.
    pub carrier: bool,
    /// The operator's order to drain, if there is one.
    pub drain: Option<Draining>,
    /// The daemon ends.
    pub stopping: bool,
}

/// An order to drain, as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draining {
    /// How new sessions are sent elsewhere.
    pub mode: DrainMode,
    /// No session is left, or there is no more time.
    pub over: bool,
}

impl Facts {
    /// Whether the prefix may take traffic, as far as its services and the network go.
    fn is_healthy(&self) -> bool {
        self.up == Some(true) && self.carrier
    }
}

impl State {
    /// The state after this one; itself when nothing moves it.
    #[must_use]
    pub fn after(self, facts: &Facts) -> State {
        if facts.stopping {
            return State::Stopping;
        }
        let known = facts.published && facts.up.is_some();
        match (self, facts.drain) {
            (State::Starting, _) if !facts.kernel_read => State::Starting,
            (State::Starting, _) => State::Joining,
            (State::Draining | State::Drained, None) => State::Joining,
            (State::Draining, Some(drain)) if drain.over => State::Drained,
            (State::Joining | State::Ready | State::Unhealthy, Some(_)) => State::Draining,
            (State::Joining, None) if !known => State::Joining,
            (State::Joining | State::Ready | State::Unhealthy, None) if facts.is_healthy() => {
                State::Ready
            }
            (State::Joining | State::Ready | State::Unhealthy, None) => State::Unhealthy,
            (state @ (State::Draining | State::Drained | State::Stopping | State::Unknown), _) => {
                state
            }
        }
    }

    /// How the prefix is to be announced; `None` leaves that as it is. `keep` says that the daemon
    /// was away for a moment only.
    #[must_use]
    pub fn route(self, facts: &Facts, keep: bool) -> Option<Route> {
        match (self, facts.drain) {
            (State::Starting | State::Joining, _) if keep => None,
            (State::Stopping, _) => None,
            (State::Ready, _) => Some(Route::Announced),
            (State::Draining, Some(Draining { mode: DrainMode::GracefulShutdown, .. }))
                if facts.is_healthy() =>
            {
                Some(Route::GracefulShutdown)
            }
            _ => Some(Route::Withdrawn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of facts.
    fn all_facts() -> impl Iterator<Item = Facts> {
        let drains = [
            None,
            Some(Draining { mode: DrainMode::GracefulShutdown, over: false }),
            Some(Draining { mode: DrainMode::GracefulShutdown, over: true }),
            Some(Draining { mode: DrainMode::Withdraw, over: false }),
            Some(Draining { mode: DrainMode::Withdraw, over: true }),
        ];
        let ups = [None, Some(false), Some(true)];
        (0..16u32).flat_map(move |bits| {
            drains.into_iter().flat_map(move |drain| {
                ups.into_iter().map(move |up| Facts {
                    kernel_read: bits & 1 > 0,
                    published: bits & 2 > 0,
                    carrier: bits & 4 > 0,
                    stopping: bits & 8 > 0,
                    up,
                    drain,
                })
            })
        })
    }

    const READY: Facts = Facts {
        kernel_read: true,
        published: true,
        up: Some(true),
        carrier: true,
        drain: None,
        stopping: false,
    };
    const DRAIN: Facts =
        Facts { drain: Some(Draining { mode: DrainMode::GracefulShutdown, over: false }), ..READY };
    const OVER: Facts =
        Facts { drain: Some(Draining { mode: DrainMode::Withdraw, over: true }), ..READY };

    /// The whole table: which states can follow which, over all facts.
    #[test]
    fn the_table_of_transitions() {
        let mut table = String::new();
        for state in State::ALL {
            let mut after: Vec<State> = all_facts().map(|facts| state.after(&facts)).collect();
            after.sort_unstable();
            after.dedup();
            let names: Vec<&str> = after.into_iter().map(State::name).collect();
            table += &format!("{}: {}\n", state.name(), names.join(" "));
        }
        let expected = "\
starting: starting joining stopping
joining: joining ready unhealthy draining stopping
ready: ready unhealthy draining stopping
unhealthy: ready unhealthy draining stopping
draining: joining draining drained stopping
drained: joining drained stopping
stopping: stopping
";
        assert_eq!(table, expected);
    }

    #[test]
    fn each_fact_moves_it() {
        use State::{Drained, Draining as Drains, Joining, Ready, Starting, Stopping, Unhealthy};
        let rows = [
            (Starting, Facts { kernel_read: false, ..READY }, Starting),
            (Starting, Facts { kernel_read: false, ..DRAIN }, Starting),
            (Starting, READY, Joining),
            (Starting, DRAIN, Joining),
            (Joining, Facts { published: false, ..READY }, Joining),
            (Joining, Facts { up: None, ..READY }, Joining),
            (Joining, READY, Ready),
            (Joining, Facts { up: Some(false), ..READY }, Unhealthy),
            (Joining, Facts { carrier: false, ..READY }, Unhealthy),
            (Joining, Facts { published: false, ..DRAIN }, Drains),
            // What was joined and published once is so for good: others that are lost later must
            // not take the whole service away.
            (Ready, Facts { published: false, ..READY }, Ready),
            (Ready, Facts { up: Some(false), ..READY }, Unhealthy),
            (Ready, Facts { carrier: false, ..READY }, Unhealthy),
            (Ready, DRAIN, Drains),
            (Unhealthy, Facts { up: Some(false), ..READY }, Unhealthy),
            (Unhealthy, Facts { carrier: false, ..READY }, Unhealthy),
            (Unhealthy, READY, Ready),
            (Unhealthy, DRAIN, Drains),
            (Drains, DRAIN, Drains),
            (Drains, Facts { up: Some(false), ..DRAIN }, Drains),
            (Drains, OVER, Drained),
            (Drains, READY, Joining),
            (Drained, OVER, Drained),
            (Drained, DRAIN, Drained),
            (Drained, READY, Joining),
        ];
        for (state, facts, expected) in rows {
            assert_eq!(state.after(&facts), expected, "{state:?} {facts:?}");
        }
        for state in State::ALL {
            assert_eq!(state.after(&Facts { stopping: true, ..DRAIN }), Stopping);
        }
    }

    /// With facts that stay, no state is passed twice.
    #[test]
    fn it_comes_to_rest() {
        for facts in all_facts() {
            for state in State::ALL {
                let mut now = state;
                let moves = std::iter::from_fn(|| {
                    let next = now.after(&facts);
                    (next != std::mem::replace(&mut now, next)).then_some(next)
                });
                assert!(moves.take(State::ALL.len()).count() < State::ALL.len(), "{facts:?}");
            }
        }
    }

    #[test]
    fn announced_is_what_is_ready_and_nothing_else() {
        for facts in all_facts() {
            for state in State::ALL {
                let route = state.route(&facts, false);
                let announced = route == Some(Route::Announced);
                assert_eq!(announced, state == State::Ready, "{state:?} {facts:?}");
                if route == Some(Route::GracefulShutdown) {
                    assert_eq!(state, State::Draining);
                    assert!(facts.carrier && facts.up == Some(true));
                }
                // A daemon that is back at once changes nothing until it knows better.
                let kept = state.route(&facts, true);
                let waits = matches!(state, State::Starting | State::Joining);
                assert_eq!(kept, if waits { None } else { route }, "{state:?} {facts:?}");
            }
        }
        assert_eq!(State::Stopping.route(&READY, false), None);
        assert_eq!(State::Draining.route(&DRAIN, false), Some(Route::GracefulShutdown));
        let withdrawn = Some(Route::Withdrawn);
        assert_eq!(State::Draining.route(&OVER, false), withdrawn);
        assert_eq!(State::Draining.route(&Facts { carrier: false, ..DRAIN }, false), withdrawn);
        assert_eq!(State::Drained.route(&OVER, false), withdrawn);
    }
}
