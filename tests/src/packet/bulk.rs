//! Many packets in a row: what a row asks of each, without what costs a row its time. Counters are read when they are asked for, and
//! tables whole.

use std::net::IpAddr;

use agent_common::{Flow, Fragment, FragmentKey, Tuple};
use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};

use super::world::World;

/// Size of `struct __sk_buff`, and where the fields stand that a caller may set.
const CONTEXT: usize = 192;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;
/// Room for a packet that grew.
const ROOM: usize = 4096;

impl World {
    /// Runs a program on a frame. Answers what it returned and the packet out.
    ///
    /// # Errors
    /// No such program, or the kernel makes no packet of the frame.
    pub fn pass(
        &self,
        program: &str,
        ifindex: u32,
        ingress: u32,
        sent: &[u8],
    ) -> Result<(i32, Vec<u8>)> {
        let mut context = [0; CONTEXT];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&ingress.to_ne_bytes());
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&self.gso_size.to_ne_bytes());
        let mut frame = vec![0; ROOM];
        let program = self.ebpf.program(program).context("no such program")?;
        let program: &SchedClassifier = program.try_into()?;
        let options = TestRunOptions {
            data_in: Some(sent),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).context("BPF_PROG_TEST_RUN")?;
        frame.truncate(usize::try_from(result.data_size_out)?);
        // The kernel hands the program's 32 bits back without their sign.
        Ok((result.return_value.cast_signed(), frame))
    }

    /// From now on packets are several that the kernel carries as one, of so many bytes each; 0: they are not.
    pub fn carry_together(&mut self, gso_size: u32) {
        self.gso_size = gso_size;
    }

    /// Interface of the uplink.
    pub fn uplink_ifindex(&self) -> u32 {
        self.uplink()
    }

    /// Makes an address somebody's who has no slot, see [`agent_common::address_kind`].
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub fn know(&mut self, address: IpAddr, kind: u8, identity: u32) -> Result<()> {
        self.address(address, kind, None, identity)
    }

    /// Both tables of flows: those that were answered, and those that were not.
    ///
    /// # Errors
    /// The kernel refuses the reading.
    pub fn tables(&self) -> Result<[Vec<(Tuple, Flow)>; 2]> {
        let answered = self.conntrack.iter().collect::<Result<Vec<_>, _>>()?;
        let waiting = self.unreplied.iter().collect::<Result<Vec<_>, _>>()?;
        Ok([answered, waiting])
    }

    /// One entry of a flow that was not answered.
    pub fn waiting_entry(&self, key: &Tuple) -> Option<Flow> {
        self.unreplied.get(key, 0).ok()
    }

    /// Writes an entry into the table of flows that were answered, or that of those that were not.
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub fn put_entry(&mut self, answered: bool, key: Tuple, flow: Flow) -> Result<()> {
        let table = if answered {
            &mut self.conntrack
        } else {
            &mut self.unreplied
        };
        Ok(table.insert(key, flow, 0)?)
    }

    /// What is kept of datagrams whose fragments are under way.
    ///
    /// # Errors
    /// The kernel refuses the reading.
    pub fn places(&self) -> Result<Vec<(FragmentKey, Fragment)>> {
        Ok(self.fragments.iter().collect::<Result<Vec<_>, _>>()?)
    }

    /// Writes the place of a fragment that is to come.
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub fn put_place(&mut self, key: FragmentKey, first: Fragment) -> Result<()> {
        Ok(self.fragments.insert(key, first, 0)?)
    }

    /// What the ring holds, each event as its bytes.
    pub fn raw_events(&mut self) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.push(item.to_vec());
        }
        events
    }

    /// Packets of every counter, all CPUs together, by the index in `counters`.
    ///
    /// # Errors
    /// The kernel refuses the reading.
    pub fn counted(&self) -> Result<Vec<u64>> {
        self.counters()
    }
}
