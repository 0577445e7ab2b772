//! The agent's own work on a change, step by step: as the reconciler does it (`sluice::reconcile`), with a clock between the steps.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use sluice::compile::{Compiler, Options};
use sluice::datapath::{Contents, Datapath, DatapathError, Write, heap};
use sluice::desired::{Delta, Desired};
use sluice::local::{Local, PodLink};
use sluice::model::{Change, Cluster, Object, intern};
use sluice::plan::{Applied, Plan, Planner, apply};

/// The node that the agent thinks it is on.
pub const NODE: &str = "bench";
/// A settled state takes one update, and two where something had to stay until the first was in force. More is no end.
const UPDATES: usize = 8;

/// What a change took.
#[derive(Clone, Copy, Default, Debug)]
pub struct Took {
    /// From the event to what the maps should say.
    pub compile: Duration,
    /// From the event to the last write that something waits for: what comes behind a grace period is garbage.
    pub live: Duration,
    /// From the event to the end, grace periods included.
    pub whole: Duration,
    /// CPU time of all of it.
    pub cpu: Duration,
    /// Writes that the datapath took.
    pub writes: u64,
}

/// A datapath that notes when it was written to last before the first wait.
struct Noting {
    inner: Box<dyn Datapath>,
    /// The last write before a grace period.
    live: Option<Instant>,
    waited: bool,
}

impl Datapath for Noting {
    fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        self.inner.write(write)?;
        if !self.waited {
            self.live = Some(Instant::now());
        }
        Ok(())
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        self.waited = true;
        self.inner.grace()
    }

    fn contents(&self) -> Result<Contents, DatapathError> {
        self.inner.contents()
    }
}

/// An agent without sources, links and clock.
pub struct Offline {
    cluster: Cluster,
    local: Local,
    compiler: Compiler,
    planner: Option<Planner>,
    datapath: Noting,
}

/// CPU time of the calling thread so far.
///
/// # Errors
/// The kernel has no such clock.
pub fn cpu() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("reading the CPU clock")?;
    Ok(Duration::from(time))
}

impl Offline {
    /// An agent that knows nothing, over a datapath, on a node with these links of pods.
    pub fn new(datapath: Box<dyn Datapath>, local: Local) -> Self {
        Self {
            cluster: Cluster::default(),
            local,
            compiler: Compiler::new(Options::new(intern(NODE))),
            planner: None,
            datapath: Noting {
                inner: datapath,
                live: None,
                waited: false,
            },
        }
    }

    /// Takes the whole cluster in, as at a start, and puts it in force.
    ///
    /// # Errors
    /// Something did not fit, or the datapath refused.
    pub fn start(&mut self, objects: impl IntoIterator<Item = Object>) -> Result<Took> {
        ensure!(self.planner.is_none(), "it has started already");
        let took = self.take(objects)?;
        heap::give_back();
        Ok(took)
    }

    /// Takes changed objects in, as one batch, and puts them in force.
    ///
    /// # Errors
    /// As [`Offline::start`].
    pub fn change(&mut self, objects: impl IntoIterator<Item = Object>) -> Result<Took> {
        ensure!(self.planner.is_some(), "it has not started");
        self.take(objects)
    }

    /// The cluster as it is.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What the maps hold, by the agent's own word.
    pub fn contents(&self) -> Option<&Contents> {
        self.planner.as_ref().map(Planner::contents)
    }

    fn take(&mut self, objects: impl IntoIterator<Item = Object>) -> Result<Took> {
        let (began, cpu_before) = (Instant::now(), cpu()?);
        (self.datapath.live, self.datapath.waited) = (None, false);
        let mut changes: Vec<Change> = Vec::new();
        for object in objects {
            changes.extend(self.cluster.upsert(object));
        }
        let mut took = Took::default();
        let mut local_changed = self.planner.is_none();
        for _ in 0..UPDATES {
            let unfinished = self.planner.as_ref().is_some_and(Planner::unfinished);
            self.compiler.hold(unfinished);
            if self.planner.is_none() {
                let held = self.datapath.contents()?;
                self.compiler.adopt(held);
            }
            let compiled =
                self.compiler
                    .update(&self.cluster, &self.local, &changes, local_changed);
            if took.compile.is_zero() {
                took.compile = began.elapsed();
            }
            ensure!(
                compiled.problems.is_empty(),
                "not all of it can be in force: {:?}",
                compiled.problems.first()
            );
            changes.clear();
            local_changed = false;
            took.writes += self.put(compiled.delta)?;
            if !compiled.unfinished {
                took.whole = began.elapsed();
                took.cpu = cpu()?.saturating_sub(cpu_before);
                took.live = match self.datapath.live {
                    Some(at) => at.duration_since(began),
                    None => took.whole,
                };
                return Ok(took);
            }
        }
        anyhow::bail!("still unfinished after {UPDATES} updates")
    }

    /// Plans and applies; answers how many writes it took.
    fn put(&mut self, delta: Delta) -> Result<u64> {
        let datapath = &mut self.datapath;
        let mut writes = 0;
        let mut run = |planner: &mut Planner, plan: Plan| -> Result<Applied> {
            let applied = apply(planner, plan, datapath);
            let problem = applied.problems.first();
            ensure!(problem.is_none(), "not all of it is in force: {problem:?}");
            writes += applied.writes;
            Ok(applied)
        };
        let (planner, applied) = match &mut self.planner {
            Some(planner) => {
                let plan = planner.plan(&delta);
                let applied = run(planner, plan)?;
                (planner, applied)
            }
            none => {
                let desired = Desired::from(delta);
                let (mut planner, plan) = Planner::restore(Contents::default(), desired);
                let applied = run(&mut planner, plan)?;
                (none.insert(planner), applied)
            }
        };
        if (applied.freed || planner.staged()) && planner.unfinished() {
            let plan = planner.plan(&Delta::default());
            run(planner, plan)?;
        }
        Ok(writes)
    }
}

/// The node's own state: a link for each of these interfaces, with the pod's address.
pub fn local(links: &[(u32, IpAddr)]) -> Local {
    let mut local = Local::default();
    for (ifindex, address) in links {
        let [_, _, high, low] = ifindex.to_be_bytes();
        local.pods.insert(
            *ifindex,
            PodLink {
                ifindex: *ifindex,
                name: format!("azv{ifindex}"),
                host_mac: [2, 0, 0, 1, high, low],
                pod_mac: Some([2, 0, 0, 2, high, low]),
                addresses: BTreeSet::from([*address]),
                // Another namespace: what comes for the pod goes there by peer redirect.
                peer_namespace: Some(1),
            },
        );
    }
    local
}

#[cfg(test)]
mod tests {
    use sluice::datapath::memory::Memory;

    use super::super::population::{Own, Size, alone, others, service, slices};
    use super::*;

    #[test]
    fn a_start_puts_all_in_force_and_a_change_little() {
        let size = Size {
            services: 20,
            endpoints: 60,
            policies: 100,
            pods: 50,
        };
        let server = Own {
            name: "server".to_owned(),
            node: NODE.to_owned(),
            addresses: vec!["10.244.1.3".parse().unwrap()],
        };
        let mut agent = Offline::new(Box::new(Memory::new()), local(&[(7, server.addresses[0])]));
        let objects = others(&size).chain(alone(&size, &server));
        let began = agent.start(objects).unwrap();
        assert!(
            began.whole >= began.compile && began.writes > 200,
            "{began:?}"
        );
        let contents = agent.contents().unwrap();
        // Ports of the own service in two protocols, and one of each other.
        assert_eq!(contents.services.len(), 16 + 20);
        assert!(!contents.rules.is_empty());
        assert_eq!(contents.pods.len(), 1);

        // The same again is no change.
        assert_eq!(agent.change([service(3)]).unwrap().writes, 0);
        let Object::EndpointSlice(slice) = slices(&size, 3).remove(0) else {
            panic!("a slice");
        };
        let mut slice = (*slice).clone();
        slice.endpoints.pop();
        let took = agent
            .change([Object::EndpointSlice(std::sync::Arc::new(slice))])
            .unwrap();
        assert!((1..10).contains(&took.writes), "{took:?}");
        assert!(took.live <= took.whole);
    }
}
