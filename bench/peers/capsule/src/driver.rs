//! Runs the paths in turn: a pipeline of capsule's that, inside capsule's executor, gives each
//! path its slice of every round.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Result, ensure};
use capsule::PortQueue;
use capsule::batch::Pipeline;
use serde_json::{Value, json};

use crate::clock::{self, Spent, Start};
use crate::direct::Direct;
use crate::outer::{GUE_LENGTH, IPIP_LENGTH, Tunnel};
use crate::packets::{self, GROUP_BURSTS, GROUP_PACKETS, Packets, Services};
use crate::report::{self, Samples};
use crate::table::{FLOWS, Order, Table};
use crate::with_capsule::{self, AnyPipeline, Setting};
use crate::{Cores, SLICE_PACKETS};

/// Groups of a slice.
const GROUPS: usize = SLICE_PACKETS.div_ceil(GROUP_PACKETS);

/// Frame length in bytes (without the checksum) and flows in use.
const SCENARIOS: [(usize, usize); 3] = [(60, FLOWS), (60, 1024), (1400, FLOWS)];

/// capsule's runtime polls it as it does any pipeline.
pub struct Driver(Pin<Box<dyn Future<Output = ()>>>);

impl Driver {
    pub fn new(queue: PortQueue, cores: Cores, rounds: usize) -> Driver {
        Driver(Box::pin(async move {
            match measure(queue, cores, rounds).await {
                Ok(document) => println!("{document:#}"),
                Err(error) => {
                    eprintln!("capsule-path: {error:#}");
                    std::process::exit(1);
                }
            }
            // SAFETY: sends a signal to this thread, which capsule's runtime waits for.
            unsafe { libc::raise(libc::SIGTERM) };
        }))
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl Pipeline for Driver {
    fn name(&self) -> &str {
        "driver"
    }

    /// Of periodic pipelines, which this is not.
    fn run_once(&mut self) {}
}

/// How a path is run.
enum Work {
    /// Burst after burst, in a loop of ours.
    Direct(Direct),
    /// The same with capsule's pipeline.
    Loop(AnyPipeline),
    /// capsule's pipeline as its runtime runs it: once per turn of the executor.
    Executor(AnyPipeline),
}

struct Path {
    name: &'static str,
    tunnel: Tunnel,
    order: Order,
    work: Work,
    samples: Samples,
}

impl Path {
    /// The time of [`GROUP_BURSTS`] bursts.
    async fn group(&mut self) -> Spent {
        let start = Start::now();
        match &mut self.work {
            Work::Direct(direct) => (0..GROUP_BURSTS).for_each(|_| direct.run_once()),
            Work::Loop(pipeline) => (0..GROUP_BURSTS).for_each(|_| pipeline.run_once()),
            Work::Executor(pipeline) => {
                for _ in 0..GROUP_BURSTS {
                    Turn { pipeline, polled: false }.await;
                }
            }
        }
        start.elapsed()
    }

    fn grown(&self) -> usize {
        match self.tunnel {
            Tunnel::Ipip => IPIP_LENGTH,
            Tunnel::Gue => GUE_LENGTH,
        }
    }

    async fn slice(&mut self, packets: &mut Packets) -> Result<Spent> {
        let mut spent = Spent::default();
        for _ in 0..GROUPS {
            packets.rewrite();
            spent += self.group().await;
            ensure!(packets.have_grown(self.grown()), "{}: a packet was lost", self.name);
        }
        Ok(spent)
    }
}

/// One poll of a pipeline, which runs a burst and has its task woken.
struct Turn<'a> {
    pipeline: &'a mut AnyPipeline,
    polled: bool,
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.polled {
            return Poll::Ready(());
        }
        self.polled = true;
        Pin::new(&mut *self.pipeline).poll(context)
    }
}

async fn measure(mut queue: PortQueue, cores: Cores, rounds: usize) -> Result<Value> {
    let load = report::load_average();
    let table = Table::build(packets::flow)?;
    let mut packets = Packets::feed(&mut queue)?;
    let clock = clock::overhead();
    let mut scenarios = Vec::new();
    for (frame_length, flows) in SCENARIOS {
        packets.set(frame_length, flows);
        let mut paths = all_paths(&queue, table);
        check_same(&mut paths, &mut packets).await?;
        for round in 0..=rounds {
            let count = paths.len();
            for turn in 0..count {
                let path = &mut paths[(round + turn) % count];
                let spent = path.slice(&mut packets).await?;
                // The first round only warms up.
                if round > 0 {
                    path.samples.add(spent, clock, GROUPS);
                }
            }
        }
        let samples =
            paths.iter().map(|path| (path.name, (path.tunnel, path.order), &path.samples));
        scenarios.push(report::scenario(frame_length, flows, samples));
    }
    Ok(json!({
        "machine": report::machine(cores, load, table.page_kb()),
        "rounds": rounds,
        "slice_packets": GROUPS * GROUP_PACKETS,
        "table_flows": FLOWS,
        "clock_overhead_per_group": { "cpu_ns": clock.cpu_ns, "tsc_cycles": clock.tsc_cycles },
        "group_packets": GROUP_PACKETS,
        "scenarios": scenarios,
    }))
}

fn all_paths(queue: &PortQueue, table: Table) -> Vec<Path> {
    let services = Services::new();
    let mut paths = Vec::new();
    for (tunnel, order) in report::KINDS {
        let setting = Setting { queue: queue.clone(), tunnel, order, table, services };
        paths.extend(
            [
                (report::DIRECT, Work::Direct(Direct { tunnel, order, table, services })),
                ("capsule_typed", Work::Loop(with_capsule::typed(&setting))),
                ("capsule_typed_in_executor", Work::Executor(with_capsule::typed(&setting))),
                ("capsule_one_extend", Work::Loop(with_capsule::one_extend(&setting))),
            ]
            .map(|(name, work)| Path {
                name,
                tunnel,
                order,
                work,
                samples: Samples::default(),
            }),
        );
    }
    paths
}

/// All paths must make the same frames of the same packets.
async fn check_same(paths: &mut [Path], packets: &mut Packets) -> Result<()> {
    for tunnel in [Tunnel::Ipip, Tunnel::Gue] {
        let mut expected = None;
        for path in paths.iter_mut().filter(|path| path.tunnel == tunnel) {
            packets.rewind();
            packets.rewrite();
            path.group().await;
            ensure!(packets.have_grown(path.grown()), "{}: packets were lost", path.name);
            let frames = packets.frames();
            let expected = expected.get_or_insert_with(|| frames.clone());
            ensure!(*expected == frames, "{}: {tunnel:?} frames differ", path.name);
        }
    }
    Ok(())
}
