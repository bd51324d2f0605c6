//! Brings the daemons to where measuring begins: sessions open, published, redirects learnt. Every
//! wait is bounded, and says what it waited for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_dpdk::tsc;
use serde_json::{Value, json};

use crate::args::Args;
use crate::daemon::{Daemon, Stats};
use crate::door::{BURST, Door};
use crate::flows::{Class, Flow};
use crate::generator::Generator;
use crate::pace::Pace;

const START: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(180);
/// Handshakes under way at once: fewer than any ring holds, so that none is lost to a full one.
const WINDOW: u64 = 256;
/// Without any progress for so long, a handshake's packet is lost.
const STALLED: Duration = Duration::from_millis(200);
/// Passes over sessions of which some are missing.
const PASSES: u32 = 3;
/// Pause of the generator when nothing is due: the DHT cores may have its CPU.
const PAUSE: Duration = Duration::from_micros(50);

/// Waits until both daemons are connected, running, and know each other.
pub fn wait_for_start(doors: [&Door; 3], near: &Daemon, far: &Daemon) -> Result<()> {
    wait(START, || {
        for (name, door) in ["uplink", "host port", "far host port"].into_iter().zip(doors) {
            if !door.is_up()? {
                return Ok(Some(format!("the other end of the {name}")));
            }
        }
        for (name, daemon) in [("near", near), ("far", far)] {
            match daemon.stats() {
                Err(error) => return Ok(Some(format!("{name} to answer ({error:#})"))),
                Ok(stats) if gauge(&stats, "joined")? == 0 || gauge(&stats, "peers")? == 0 => {
                    return Ok(Some(format!("{name} to join")));
                }
                Ok(_) => {}
            }
        }
        Ok(None)
    })
}

/// Waits until both daemons have left their host ports, for a while.
pub fn wait_for_end(generator: &Generator) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < END && (generator.host.is_up()? || generator.far_host.is_up()?) {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Opens the sessions of both daemons, waits until they are published, and lets near learn its
/// redirects. Returns how that went.
pub fn install(
    generator: &mut Generator,
    args: &Args,
    near: &Daemon,
    far: &Daemon,
) -> Result<Value> {
    let start = Instant::now();
    install_far(generator, args, far)?;
    install_near(generator, args, near)?;
    let opened_s = start.elapsed().as_secs_f64();
    wait_until_published(near, far, args)?;
    let published_s = start.elapsed().as_secs_f64();
    learn_redirects(generator, args, near)?;
    Ok(json!({
        "sessions_opened_after_s": round(opened_s),
        "all_published_after_s": round(published_s),
        "redirects_learnt_after_s": round(start.elapsed().as_secs_f64()),
    }))
}

fn install_far(generator: &mut Generator, args: &Args, far: &Daemon) -> Result<()> {
    let wanted = u64::from(args.redirects);
    for _ in 0..PASSES {
        paced(generator, args.install_rate, args.redirects, |generator, index| {
            generator.speak_at_far(Flow { class: Class::Redirect, index });
        });
        if table(&far.stats()?, "local")? >= wanted {
            return Ok(());
        }
    }
    bail!("far learnt {} of {wanted} sessions", table(&far.stats()?, "local")?)
}

fn install_near(generator: &mut Generator, args: &Args, near: &Daemon) -> Result<()> {
    let wanted = u64::from(args.sessions);
    for _ in 0..PASSES {
        handshakes(generator, args.install_rate, args.sessions);
        let stats = near.stats()?;
        if table(&stats, "local")? >= wanted && table(&stats, "half_open")? == 0 {
            return Ok(());
        }
    }
    let stats = near.stats()?;
    let (local, half_open) = (table(&stats, "local")?, table(&stats, "half_open")?);
    bail!("near has {local} of {wanted} sessions, {half_open} of them half-open")
}

/// Opens local sessions, a bounded number at once. Those of which a packet is lost are left for
/// the next pass.
fn handshakes(generator: &mut Generator, rate: u64, count: u32) {
    let before = generator.handshakes.local_open;
    let mut pace = Pace::new(tsc(), generator.hz(), rate, rate / 100 + 1);
    let (mut sent, mut done, mut progress) = (0, 0, Instant::now());
    while sent < count || done < u64::from(sent) {
        let open = generator.handshakes.local_open - before;
        if open > done {
            (done, progress) = (open, Instant::now());
        } else if progress.elapsed() > STALLED {
            (done, progress) = (u64::from(sent), Instant::now());
        }
        let room = WINDOW.saturating_sub(u64::from(sent) - done.min(u64::from(sent)));
        let room = room.min(u64::from(count - sent)).min(BURST as u64);
        let due = pace.take(tsc(), room) as u32;
        for index in sent..sent + due {
            generator.open(Flow { class: Class::Local, index });
        }
        sent += due;
        if !generator.poll() && due == 0 {
            std::thread::sleep(PAUSE);
        }
    }
}

fn wait_until_published(near: &Daemon, far: &Daemon, args: &Args) -> Result<()> {
    let wanted = [u64::from(args.sessions), u64::from(args.redirects)];
    wait(SETTLE, || {
        for ((name, daemon), wanted) in [("near", near), ("far", far)].into_iter().zip(wanted) {
            let stats = daemon.stats()?;
            let published = gauge(&stats, "published")?;
            let unacked = gauge(&stats, "published_unacked")?;
            if published < wanted || unacked > 0 {
                return Ok(Some(format!(
                    "{name} to publish: {published} of {wanted}, {unacked} unacknowledged"
                )));
            }
        }
        Ok(None)
    })
}

/// Near asks the DHT for the owner of each.
fn learn_redirects(generator: &mut Generator, args: &Args, near: &Daemon) -> Result<()> {
    let wanted = u64::from(args.redirects);
    for _ in 0..PASSES {
        generator.begin()?;
        paced(generator, args.learn_rate, args.redirects, |generator, index| {
            generator.send_data(Flow { class: Class::Redirect, index }, tsc());
        });
        if table(&near.stats()?, "redirect")? >= wanted {
            let wrong = generator.tally.wrong();
            let first = generator.tally.first_wrong.as_deref().unwrap_or("-");
            ensure!(wrong == 0, "{wrong} wrong packets while redirects were learnt: {first}");
            return Ok(());
        }
    }
    bail!("near learnt {} of {wanted} redirects", table(&near.stats()?, "redirect")?)
}

/// Does `send` for each index at this rate, then takes what comes until nothing does.
fn paced(
    generator: &mut Generator,
    rate: u64,
    count: u32,
    mut send: impl FnMut(&mut Generator, u32),
) {
    let mut pace = Pace::new(tsc(), generator.hz(), rate, rate / 100 + 1);
    let mut next = 0;
    while next < count {
        let due = pace.take(tsc(), u64::from(count - next).min(BURST as u64)) as u32;
        for index in next..next + due {
            send(generator, index);
        }
        next += due;
        if !generator.poll() && due == 0 {
            std::thread::sleep(PAUSE);
        }
    }
    let mut last = Instant::now();
    while last.elapsed() < STALLED {
        if generator.poll() {
            last = Instant::now();
        } else {
            std::thread::sleep(PAUSE);
        }
    }
}

/// Asks until there is nothing to wait for.
fn wait(most: Duration, mut missing: impl FnMut() -> Result<Option<String>>) -> Result<()> {
    let start = Instant::now();
    loop {
        let Some(what) = missing()? else { return Ok(()) };
        ensure!(start.elapsed() < most, "waited {} s for {what}", most.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn gauge(stats: &Stats, name: &str) -> Result<u64> {
    stats.dht_gauges.get(name).copied().with_context(|| format!("the DHT has no gauge '{name}'"))
}

fn table(stats: &Stats, name: &str) -> Result<u64> {
    stats.table.get(name).copied().with_context(|| format!("the table has no gauge '{name}'"))
}

fn round(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}
