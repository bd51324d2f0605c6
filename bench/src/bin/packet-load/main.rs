//! `packet-load`: drives the real holdfastd from both sides, as network and as the server's
//! kernel, and measures what it forwards, loses and how long that takes. It never changes a
//! daemon's configuration and judges one thing alone: whether every packet is accounted for.

#![forbid(unsafe_code)]

mod args;
mod books;
mod cpu_time;
mod daemon;
mod door;
mod flows;
mod frames;
mod generator;
mod install;
mod latency;
mod measure;
mod pace;
mod traffic;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use holdfast_dpdk::{Eal, version};
use serde_json::{Value, json};

use args::Args;
use daemon::{Daemon, Stats};
use door::Door;
use frames::{Addresses, Frames};
use generator::Generator;
use measure::{Outcome, Plan, measure};
use pace::Search;
use traffic::{Draw, RunName};

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    args.check()?;
    if args.dry_run {
        print_line(&json!({
            "eal": args.eal(),
            "devices": {"uplink": args.uplink, "host": args.host, "far_host": args.far_host},
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let eal = Eal::init(&args.eal()).context("starting DPDK")?;
    let (generator, result, faults) = run(&eal, &args)?;
    print_line(&result)?;
    for fault in &faults {
        say(&format!("FAULT: {fault}"));
    }
    say("finished");
    // DPDK's memif driver may crash in the process whose peer goes away while it polls: the
    // daemons go first.
    install::wait_for_end(&generator)?;
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the generator, the result, and what must never be in words.
fn run(eal: &Eal, args: &Args) -> Result<(Generator, Value, Vec<String>)> {
    let near = daemon(args, &args.near_control);
    let far = daemon(args, &args.far_control);
    let doors = [
        Door::open(eal, "uplink", &args.uplink)?,
        Door::open(eal, "host", &args.host)?,
        Door::open(eal, "far_host", &args.far_host)?,
    ];
    // The script starts the daemons now: a memif's client side wants its server to be there.
    say("ready");
    let [uplink, host, far_host] = &doors;
    install::wait_for_start([uplink, host, far_host], &near, &far)?;
    let frames = Frames::new(addresses(args, uplink, &near.stats()?)?, args.frame_bytes)?;
    let mut generator = Generator::new(frames, doors, eal.tsc_hz(), args.sample)?;

    say(&format!("installing {} sessions and {} redirects", args.sessions, args.redirects));
    let setup = install::install(&mut generator, args, &near, &far)?;
    say(&format!("installed: {setup}"));

    let mut result = json!({
        "dpdk": version(),
        "sessions": args.sessions,
        "redirected_sessions": args.redirects,
        "churn_per_second": args.churn,
        "frame_bytes": args.frame_bytes,
        "loss_percent_max": args.loss_percent,
        "setup": setup,
    });
    let mut draw = Draw::new(args.sessions, args.redirects);
    let mut faults = Vec::new();
    for name in &args.runs {
        let outcome = one_run(&mut generator, &mut draw, &near, args, *name, &mut faults)?;
        result[name.as_str()] = outcome;
    }
    result["faults"] = json!(faults);
    Ok((generator, result, faults))
}

/// A run at its fixed rate, then the search for its highest.
fn one_run(
    generator: &mut Generator,
    draw: &mut Draw,
    near: &Daemon,
    args: &Args,
    run: RunName,
    faults: &mut Vec<String>,
) -> Result<Value> {
    let rate = args.rate(run);
    let fixed = Plan { run, rate, seconds: args.seconds, churn: args.churn };
    let outcome = measured(generator, draw, near, fixed, faults)?;
    let mut json = outcome.to_json();

    let mut search = Search::new(rate);
    let (mut steps, mut highest, mut highest_rate) = (Vec::new(), Value::Null, 0);
    let mut again = false;
    while steps.len() < args.steps as usize {
        let Some(rate) = search.rate() else { break };
        let plan = Plan { rate, seconds: args.step_seconds, ..fixed };
        let outcome = measured(generator, draw, near, plan, faults)?;
        let good = outcome.lost_percent() <= args.loss_percent && !outcome.generator_limited();
        if good && rate > highest_rate {
            (highest_rate, highest) = (rate, outcome.summary());
        }
        steps.push(outcome.summary());
        // Another process may have had one of the CPUs: what does not go well gets a second try.
        again = !good && !again;
        if !again {
            search.went(good);
        }
    }
    json["highest"] = highest;
    json["steps"] = steps.into();
    Ok(json)
}

fn measured(
    generator: &mut Generator,
    draw: &mut Draw,
    near: &Daemon,
    plan: Plan,
    faults: &mut Vec<String>,
) -> Result<Outcome> {
    let outcome = measure(generator, draw, near, plan)?;
    let summary = outcome.summary();
    say(&format!(
        "{:<9} at {:>8}/s for {} s: offered {} forwarded {} Mpps, lost {} %, p50 {} p99 {} us, \
         worker waited {} % for its CPU",
        plan.run.as_str(),
        plan.rate,
        plan.seconds,
        summary["offered_mpps"],
        summary["forwarded_mpps"],
        summary["lost_percent"],
        summary["latency_us"]["p50"],
        summary["latency_us"]["p99"],
        summary["cpu_percent"]["worker_waited"],
    ));
    faults.extend(outcome.faults());
    Ok(outcome)
}

fn daemon(args: &Args, socket: &std::path::Path) -> Daemon {
    Daemon { holdfastctl: args.holdfastctl.clone(), socket: socket.to_owned() }
}

fn addresses(args: &Args, uplink: &Door, near: &Stats) -> Result<Addresses> {
    Ok(Addresses {
        near_mac: daemon::mac(&near.uplink_mac)?,
        own_mac: uplink.mac(),
        service: args.service,
        near: args.near_locator,
        far: args.far_locator,
        tunnel_port: args.tunnel_port,
    })
}

/// Progress goes to standard error; the result alone to standard output.
fn say(text: &str) {
    // Nobody reads it: no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "packet-load: {text}");
}

fn print_line(value: &Value) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value}")
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}
