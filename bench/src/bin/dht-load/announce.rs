//! Publishing and withdrawing sessions, until every replica has acknowledged. It never looks a
//! session up.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use holdfast_dht::Gauges;
use holdfast_handoff::Announcement;

use crate::cluster::{Cluster, growth};
use crate::meter::{Cost, Meter};
use crate::report::{self, Times};
use crate::sessions::Sessions;

/// Announcements queued at one server before it is another's turn.
const BURST: usize = 512;
/// The driver's sleep when all rings are full.
const NAP: Duration = Duration::from_micros(200);
/// Between two looks at a server's gauges.
const POLL: Duration = Duration::from_millis(2);
/// Gauges that stand still for so long will not move any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Publishes all and waits until all replicas of each have acknowledged it. `published` is what
/// each server has published before.
pub fn publish(cluster: &mut Cluster, sessions: &Sessions, published: u64) -> Result<Cost> {
    let meter = Meter::read(cluster)?;
    announce(cluster, sessions, |sessions, at| Announcement::Publish {
        flow: sessions.flow(at),
        version: sessions.version(at),
    })?;
    settle(cluster, |server, gauges| {
        let expected = published + sessions.owned_by(server);
        gauges.published == expected && gauges.published_unacked == 0
    })?;
    meter.cost(cluster, meter.at().elapsed().as_secs_f64())
}

/// Withdraws all and waits until they are deleted at all replicas.
pub fn withdraw(cluster: &mut Cluster, sessions: &Sessions, published: u64) -> Result<Cost> {
    let meter = Meter::read(cluster)?;
    announce(cluster, sessions, |sessions, at| Announcement::Withdraw {
        flow: sessions.flow(at),
        version: sessions.version(at),
    })?;
    settle(cluster, |_, gauges| gauges.published == published && gauges.withdrawing == 0)?;
    meter.cost(cluster, meter.at().elapsed().as_secs_f64())
}

fn announce(
    cluster: &mut Cluster,
    sessions: &Sessions,
    announcement: impl Fn(&Sessions, u64) -> Announcement,
) -> Result<()> {
    let mut done = vec![0; cluster.servers.len()];
    let mut progress = Instant::now();
    loop {
        let (mut queued, mut left) = (0, 0);
        for (index, server) in cluster.servers.iter_mut().enumerate() {
            let owned = sessions.owned_by(index);
            for _ in 0..BURST {
                let at = sessions.nth_of(index, done[index]);
                if done[index] == owned
                    || server.worker.announce(announcement(sessions, at)).is_err()
                {
                    break;
                }
                done[index] += 1;
                queued += 1;
            }
            server.worker.ring_doorbell();
            left += owned - done[index];
        }
        if left == 0 {
            return Ok(());
        }
        if queued > 0 {
            progress = Instant::now();
        } else if progress.elapsed() > PATIENCE {
            bail!("no service takes announcements any more: {left} are left");
        } else {
            std::thread::sleep(NAP);
        }
    }
}

/// Waits until all servers are `done`, which none stops being.
fn settle(cluster: &Cluster, done: impl Fn(usize, &Gauges) -> bool) -> Result<()> {
    for (index, server) in cluster.servers.iter().enumerate() {
        let mut progress = Instant::now();
        let mut seen = (0, 0);
        loop {
            let gauges = server.stats()?.gauges;
            if done(index, &gauges) {
                break;
            }
            let now = (gauges.published - gauges.published_unacked, gauges.withdrawing);
            if now != seen {
                (seen, progress) = (now, Instant::now());
            } else if progress.elapsed() > PATIENCE {
                bail!("{} does not settle: {gauges:?}", server.locator);
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// Times of publishing with nothing else to do.
#[derive(Debug)]
pub struct IdleSets {
    /// From the first STORE sent until all replicas have acknowledged, as the owner measures it.
    pub stored: Times,
    /// From announcing until the driver, which asks without pause, is told that all replicas have
    /// acknowledged: an upper bound that contains the asking.
    pub seen: Times,
}

/// Publishes one session after another, each when the one before is acknowledged; half of them
/// undisturbed, half watched.
pub fn idle_sets(cluster: &mut Cluster, sessions: &Sessions, published: u64) -> Result<IdleSets> {
    let mut counts = vec![published; cluster.servers.len()];
    let half = sessions.count() / 2;
    let before = cluster.stats()?;
    for at in 0..half {
        publish_one(cluster, sessions, at, &mut counts, POLL / 2)?;
    }
    let after = cluster.stats()?;
    let pairs = before.iter().zip(&after);
    let grown = pairs.flat_map(|(b, a)| growth(&b.setting_time_us, &a.setting_time_us));
    let stored = report::times(grown);
    let mut seen = report::no_times();
    for at in half..sessions.count() {
        let time = publish_one(cluster, sessions, at, &mut counts, Duration::ZERO)?;
        report::record(&mut seen, time);
    }
    Ok(IdleSets { stored, seen })
}

fn publish_one(
    cluster: &mut Cluster,
    sessions: &Sessions,
    at: u64,
    counts: &mut [u64],
    pause: Duration,
) -> Result<Duration> {
    let owner = sessions.owner(at);
    let server = &mut cluster.servers[owner];
    counts[owner] += 1;
    let (flow, version) = (sessions.flow(at), sessions.version(at));
    let started = Instant::now();
    if server.worker.announce(Announcement::Publish { flow, version }).is_err() {
        bail!("the ring of an idle server is full");
    }
    server.worker.ring_doorbell();
    loop {
        std::thread::sleep(pause);
        let gauges = server.stats()?.gauges;
        if gauges.published == counts[owner] && gauges.published_unacked == 0 {
            return Ok(started.elapsed());
        }
        if started.elapsed() > PATIENCE {
            bail!("{} does not settle: {gauges:?}", server.locator);
        }
    }
}
