//! Judging everything again.

use agent_common::pod_flag;

use super::{Item, Planner};

impl Planner {
    /// Has the next plan raise every pod's epoch: what was judged while the maps were not as the mirror says is judged again.
    pub fn rejudge(&mut self) {
        let pods = self.mirror.contents.pods.iter();
        let used = pods.filter(|(_, pod)| pod.flags & pod_flag::USED != 0);
        self.pending
            .extend(used.map(|(slot, _)| Item::Epoch(*slot)));
    }
}
