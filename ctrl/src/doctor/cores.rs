//! The cores that workers run on: whether they are there, and theirs alone.

use super::Check;
use super::machine::Machine;
use crate::config::{Config, Idle};

const CPU: &str = "sys/devices/system/cpu";

pub(super) fn examine(machine: &Machine, config: &Config, checks: &mut Vec<Check>) {
    let name = "cores";
    let cores = &config.workers.cores;
    let online = machine.cpus(&format!("{CPU}/online"));
    let missing: Vec<_> = cores.iter().filter(|core| !online.contains(core)).collect();
    if !missing.is_empty() {
        let found =
            format!("workers.cores names {missing:?}, and this machine has {}", list(&online));
        checks.push(Check::fail(name, found, "lscpu --extended, and correct workers.cores"));
        return;
    }
    checks.extend(examine_siblings(machine, cores));
    if config.workers.idle == Idle::Adaptive {
        let found =
            format!("{}: workers.idle is \"adaptive\", so others may have them too", list(cores));
        checks.push(Check::ok(name, found));
        return;
    }
    if cores.len() >= online.len() {
        let found = "workers never sleep, and have all cores: nothing is left for the kernel and the DHT core";
        checks.push(Check::fail(name, found, "leave at least one core out of workers.cores"));
    }
    let boot = format!(
        "isolcpus={0} nohz_full={0} rcu_nocbs={0} on the kernel's command line",
        list(cores)
    );
    for (file, what) in [("isolated", "isolated"), ("nohz_full", "free of the kernel's tick")] {
        let listed = machine.cpus(&format!("{CPU}/{file}"));
        let others: Vec<_> = cores.iter().copied().filter(|core| !listed.contains(core)).collect();
        checks.push(if others.is_empty() {
            Check::ok(name, format!("{} are {what}", list(cores)))
        } else {
            Check::warn(name, format!("{} are not {what}", list(&others)), boot.clone())
        });
    }
    checks.push(examine_interrupts(machine, cores));
    checks.extend(examine_governor(machine, cores));
}

/// Two workers on the threads of one core share it.
fn examine_siblings(machine: &Machine, cores: &[u16]) -> Option<Check> {
    let shared = cores.iter().find_map(|core| {
        let siblings = machine.cpus(&format!("{CPU}/cpu{core}/topology/thread_siblings_list"));
        let other = siblings.into_iter().find(|other| other != core && cores.contains(other))?;
        Some((core, other))
    });
    let (core, other) = shared?;
    let found = format!("{core} and {other} are threads of one core, and each has a worker");
    Some(Check::warn("cores", found, "lscpu --extended, and take one thread of each core"))
}

fn examine_interrupts(machine: &Machine, cores: &[u16]) -> Check {
    let name = "interrupts";
    let busy = machine.names("proc/irq").into_iter().filter(|interrupt| {
        let goes_to = machine.cpus(&format!("proc/irq/{interrupt}/effective_affinity_list"));
        goes_to.iter().any(|cpu| cores.contains(cpu))
    });
    let busy: Vec<_> = busy.collect();
    let Some(first) = busy.first() else {
        return Check::ok(name, format!("none goes to {}", list(cores)));
    };
    let found = format!("{} go to workers' cores, {first} among them", busy.len());
    Check::warn(
        name,
        found,
        format!(
            "IRQBALANCE_BANNED_CPULIST={} in /etc/default/irqbalance, or irqaffinity= at boot",
            list(cores)
        ),
    )
}

fn examine_governor(machine: &Machine, cores: &[u16]) -> Option<Check> {
    let governor = |core: &u16| machine.read(&format!("{CPU}/cpu{core}/cpufreq/scaling_governor"));
    let slow = cores.iter().find(|core| !matches!(governor(core).as_str(), "" | "performance"))?;
    let found = format!("core {slow} has frequency governor {}", governor(slow));
    Some(Check::warn("cores", found, "cpupower frequency-set --governor performance"))
}

/// As the kernel's command line has it: `2,3`.
fn list(cores: &[u16]) -> String {
    cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
