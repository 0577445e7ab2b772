//! The loop over maps in memory, with a compile that knows services only.

mod room;

use agent_common::{Address, LinkEntry, Pod, ServiceEntry, ServiceKey, pod_flag, protocol};

use super::*;
use crate::compile::services::tests::plain;
use crate::compile::services::{ServiceOptions, Services};
use crate::datapath::faulty::{Fault, Faulty};
use crate::datapath::memory::{Capacities, Memory};
use crate::datapath::{Contents, Write};
use crate::model::{Object, intern};

struct ServicesOnly(Services);

impl Compile for ServicesOnly {
    fn update(
        &mut self,
        cluster: &Cluster,
        _local: &Local,
        changes: &[Change],
        _local_changed: bool,
    ) -> Compiled {
        let mut compiled = Compiled::default();
        let options = ServiceOptions {
            node_name: intern("n0"),
        };
        let (delta, problems) = (&mut compiled.delta, &mut compiled.problems);
        self.0.update(cluster, changes, &options, delta, problems);
        compiled
    }

    fn hold(&mut self, _hold: bool) {}

    fn adopt(&mut self, _contents: &Contents) {}

    fn rules(&self) -> BTreeMap<u32, RuleName> {
        BTreeMap::new()
    }
}

/// Attaches nothing.
struct Nowhere;

impl Attach for Nowhere {
    fn attach(
        &mut self,
        _local: &Local,
    ) -> Result<Vec<Problem>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Vec::new())
    }
}

fn key(last: u8) -> ServiceKey {
    ServiceKey::new(
        Address::v4([172, 16, 0, last]),
        80u16.to_be(),
        protocol::TCP,
    )
}

fn service(last: u8) -> Object {
    let service = plain(&format!("s{last}"), [172, 16, 0, last]);
    Object::Service(Arc::new(service))
}

/// The loop over these maps, waiting for these kinds, with a compile that knows services only.
fn over(datapath: impl Datapath + 'static, kinds: &[Kind]) -> (Reconciler, Handle) {
    Reconciler::new(
        Box::new(ServicesOnly(Services::default())),
        Box::new(datapath),
        kinds,
        Box::new(Nowhere),
        intern("n0"),
    )
}

#[tokio::test(flavor = "current_thread")]
async fn nothing_is_removed_before_all_is_told_and_a_failed_write_is_tried_again() {
    let mut before = Contents::default();
    let entry = ServiceEntry {
        pool: 9,
        flags: 0,
        check: key(9).check(),
    };
    before.services.insert(key(9), entry);
    let mut datapath = Faulty::new(Memory::with(before, Capacities::default()));
    // The first applies fail altogether.
    for nth in 0..6 {
        datapath.fail(nth, Fault::Refused);
    }
    let (reconciler, mut handle) = over(datapath, &[Kind::Service, Kind::EndpointSlice]);
    let (events, received) = mpsc::channel(16);
    let (_local, local) = watch::channel(Some(Arc::new(Local::default())));
    let running = reconciler.run(received, local);
    let test = async move {
        events.send(Event::Upsert(service(1))).await.unwrap();
        events.send(Event::Synced(Kind::Service)).await.unwrap();
        handle.state().await.unwrap();
        assert!(!*handle.ready.borrow());
        assert!(handle.snapshots.borrow().last_apply.is_none());
        events
            .send(Event::Synced(Kind::EndpointSlice))
            .await
            .unwrap();
        handle.ready.wait_for(|ready| *ready).await.unwrap();
        let snapshots = &mut handle.snapshots;
        let failed = snapshots
            .wait_for(|s| s.last_apply.is_some())
            .await
            .unwrap()
            .clone();
        let named = |p: &Problem| p.object == "Service d/s1";
        assert!(failed.problems.iter().any(named));
        snapshots
            .wait_for(|s| s.last_apply.is_some() && s.problems.is_empty())
            .await
            .unwrap();
        let state = handle.state().await.unwrap();
        let keys: Vec<_> = state.contents.services.keys().copied().collect();
        assert_eq!(keys, [key(1)]);
        drop(events);
    };
    let (ended, ()) = tokio::join!(running, test);
    ended.unwrap();
}

type Steps = Arc<std::sync::Mutex<Vec<String>>>;

/// Maps in memory that note what is written of pods.
struct Noted(Memory, Steps);

impl Datapath for Noted {
    fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        let step = match write {
            Write::Pod(slot, _) => Some(format!("pod {slot}")),
            Write::Link(ifindex, Some(entry)) => Some(format!("link {ifindex} to {}", entry.slot)),
            Write::Link(ifindex, None) => Some(format!("link {ifindex} to nobody")),
            _ => None,
        };
        self.1.lock().unwrap().extend(step);
        self.0.write(write)
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        self.0.grace()
    }

    fn contents(&self) -> Result<Contents, DatapathError> {
        self.0.contents()
    }
}

impl Attach for Steps {
    fn attach(
        &mut self,
        _local: &Local,
    ) -> Result<Vec<Problem>, Box<dyn std::error::Error + Send + Sync>> {
        self.lock().unwrap().push("attached".to_owned());
        Ok(Vec::new())
    }
}

/// A pod in slot 1 whose link has one index, and with the second change another pod in slot 2 with the same.
struct OnePod(u32);

impl Compile for OnePod {
    fn update(&mut self, _: &Cluster, _: &Local, _: &[Change], _: bool) -> Compiled {
        self.0 += 1;
        let (slot, ifindex) = (self.0, 7);
        let pod = Pod {
            ifindex,
            flags: pod_flag::USED,
            ..Pod::default()
        };
        let mut compiled = Compiled::default();
        compiled.delta.pods.insert(slot, Some(pod));
        compiled.delta.pods.insert(slot - 1, None);
        let entry = LinkEntry { slot, _zero: 0 };
        compiled.delta.links.insert(ifindex, Some(entry));
        compiled
    }

    fn hold(&mut self, _hold: bool) {}

    fn adopt(&mut self, _contents: &Contents) {}

    fn rules(&self) -> BTreeMap<u32, RuleName> {
        BTreeMap::new()
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_link_leads_to_its_pod_when_both_its_programs_are_attached() {
    let steps = Steps::default();
    let memory = Memory::with(Contents::default(), Capacities::default());
    let (reconciler, mut handle) = Reconciler::new(
        Box::new(OnePod(0)),
        Box::new(Noted(memory, Arc::clone(&steps))),
        &[Kind::Service],
        Box::new(Arc::clone(&steps)),
        intern("n0"),
    );
    let (events, received) = mpsc::channel(16);
    let (local, told) = watch::channel(Some(Arc::new(Local::default())));
    let running = reconciler.run(received, told);
    let test = async move {
        events.send(Event::Synced(Kind::Service)).await.unwrap();
        handle.ready.wait_for(|ready| *ready).await.unwrap();
        let snapshots = &mut handle.snapshots;
        snapshots.wait_for(|s| s.counts.applies == 1).await.unwrap();
        let first = std::mem::take(&mut *steps.lock().unwrap());
        assert_eq!(first, ["pod 1", "attached", "link 7 to 1"]);
        let mut other = Local::default();
        other.uplinks.insert(2, "eth0".to_owned());
        local.send(Some(Arc::new(other))).unwrap();
        snapshots.wait_for(|s| s.counts.applies == 2).await.unwrap();
        let second = std::mem::take(&mut *steps.lock().unwrap());
        let place = |step: &str| second.iter().position(|s| s == step).unwrap();
        assert!(place("link 7 to nobody") < place("attached"), "{second:?}");
        assert!(place("pod 2") < place("attached"), "{second:?}");
        assert!(place("attached") < place("link 7 to 2"), "{second:?}");
        drop(events);
    };
    let (ended, ()) = tokio::join!(running, test);
    ended.unwrap();
}

/// What the log says, for a test to read.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// Fails with mutant "no-retry".
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn what_finds_no_room_is_named_with_its_limit_and_applied_when_there_is_some() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let capacities = Capacities {
        services: 1,
        ..Capacities::default()
    };
    let datapath = Memory::with(Contents::default(), capacities);
    let (reconciler, mut handle) = over(datapath, &[Kind::Service]);
    let (events, received) = mpsc::channel(16);
    let (_local, local) = watch::channel(Some(Arc::new(Local::default())));
    let running = reconciler.run(received, local);
    let test = async move {
        events.send(Event::Upsert(service(1))).await.unwrap();
        events.send(Event::Synced(Kind::Service)).await.unwrap();
        handle.ready.wait_for(|ready| *ready).await.unwrap();
        events.send(Event::Upsert(service(2))).await.unwrap();
        let snapshots = &mut handle.snapshots;
        let crowded = snapshots
            .wait_for(|s| !s.problems.is_empty())
            .await
            .unwrap()
            .clone();
        let [problem] = crowded.problems.as_slice() else {
            panic!("{:?}", crowded.problems);
        };
        assert_eq!(problem.object, "Service d/s2");
        let limit = problem.limit.unwrap();
        assert_eq!((limit.map, limit.capacity), ("services", 1));
        assert!(!crowded.last_apply.as_ref().unwrap().whole);
        // It is tried again and again, and said once.
        let applies = crowded.counts.applies;
        snapshots
            .wait_for(|s| s.counts.applies > applies + 1)
            .await
            .unwrap();
        let said = log.text();
        let said: Vec<_> = said.lines().filter(|l| l.contains("WARN")).collect();
        let [line] = said.as_slice() else {
            panic!("{said:?}");
        };
        for part in ["Service d/s2", "map=\"services\"", "capacity=1"] {
            assert!(line.contains(part), "{line}");
        }
        let state = handle.state().await.unwrap();
        assert_eq!(
            state.contents.services.keys().collect::<Vec<_>>(),
            [&key(1)]
        );
        // Nobody asks for the second again.
        let id = service(1).id();
        events.send(Event::Delete(id)).await.unwrap();
        handle
            .snapshots
            .wait_for(|s| s.problems.is_empty())
            .await
            .unwrap();
        let state = handle.state().await.unwrap();
        assert_eq!(
            state.contents.services.keys().collect::<Vec<_>>(),
            [&key(2)]
        );
        assert!(log.text().contains("is in force as asked again"));
        drop(events);
    };
    // Nothing else wakes the loop as soon.
    let both = async { tokio::join!(running, test) };
    let both = tokio::time::timeout(DRIFT_INTERVAL / 2, both).await;
    let (ended, ()) = both.expect("what found no room is tried again");
    ended.unwrap();
}
