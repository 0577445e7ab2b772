//! A datapath that fails where a test says so, and shows the test what lies there after every single write.

use std::collections::BTreeMap;
use std::io;

use super::{Contents, Datapath, DatapathError, Write};

/// How a write fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The map has no room.
    Full,
    /// The kernel refuses (EPERM).
    Refused,
    /// The kernel has no memory (ENOMEM).
    NoMemory,
    /// The agent dies before the write: neither it nor anything after it happens.
    Crash,
}

/// Sees the datapath after each write that it took.
pub type Watcher<D> = Box<dyn FnMut(&D, &Write) + Send>;

/// Wraps a datapath.
pub struct Faulty<D> {
    /// What is wrapped.
    pub inner: D,
    faults: BTreeMap<u64, Fault>,
    lasting: BTreeMap<&'static str, Fault>,
    seen: u64,
    crashed: bool,
    watcher: Option<Watcher<D>>,
}

impl<D> Faulty<D> {
    /// Without a fault so far.
    pub fn new(inner: D) -> Self {
        Self {
            inner,
            faults: BTreeMap::new(),
            lasting: BTreeMap::new(),
            seen: 0,
            crashed: false,
            watcher: None,
        }
    }

    /// The `nth` write from now (0 is the next one) fails.
    pub fn fail(&mut self, nth: u64, fault: Fault) {
        self.faults.insert(self.seen + nth, fault);
    }

    /// Calls on a map fail from now on: all where the kernel refuses, those that want memory where it has none. Stores into mapped
    /// arrays are no calls.
    pub fn refuse(&mut self, map: &'static str, fault: Fault) {
        self.lasting.insert(map, fault);
    }

    /// The faults that lasted have ended.
    pub fn refuse_nothing(&mut self) {
        self.lasting.clear();
    }

    /// The lasting fault that a write meets.
    fn lasting(&self, write: &Write) -> Option<Fault> {
        let fault = self.lasting.get(write.map().0).copied()?;
        let meets = match fault {
            Fault::Refused | Fault::Crash => true,
            Fault::Full | Fault::NoMemory => !write.deletes(),
        };
        (meets && !write.is_store()).then_some(fault)
    }

    /// Calls back after each write.
    pub fn watch(&mut self, watcher: Watcher<D>) {
        self.watcher = Some(watcher);
    }

    /// Whether the agent has died.
    pub fn crashed(&self) -> bool {
        self.crashed
    }

    /// Writes asked for so far, failed ones too.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

fn kernel(map: &'static str, errno: i32) -> DatapathError {
    DatapathError::Kernel {
        map,
        source: io::Error::from_raw_os_error(errno),
    }
}

impl<D: Datapath> Datapath for Faulty<D> {
    fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        let (map, capacity) = write.map();
        let fault = self.faults.remove(&self.seen);
        let fault = fault.or_else(|| self.lasting(write));
        self.seen += 1;
        match fault {
            Some(Fault::Crash) => self.crashed = true,
            Some(Fault::Full) => return Err(DatapathError::Full { map, capacity }),
            Some(Fault::Refused) => return Err(kernel(map, libc::EPERM)),
            Some(Fault::NoMemory) => return Err(DatapathError::NoMemory { map }),
            None => {}
        }
        if self.crashed {
            return Err(kernel(map, libc::ESHUTDOWN));
        }
        self.inner.write(write)?;
        if let Some(watcher) = &mut self.watcher {
            watcher(&self.inner, write);
        }
        Ok(())
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        if self.crashed {
            return Err(kernel("grace period", libc::ESHUTDOWN));
        }
        self.inner.grace()
    }

    fn contents(&self) -> Result<Contents, DatapathError> {
        self.inner.contents()
    }
}
