//! What programs may tell and refuse before a limit keeps it back.

use agent_common::{Budget, budget};
use anyhow::Result;
use aya::maps::PerCpuValues;
use aya::util::nr_cpus;

use super::flows;
use super::world::World;

/// Nothing left, as of now.
fn spent() -> Budget {
    Budget {
        tokens: 0,
        refilled_ns: flows::now_ns(),
    }
}

impl World {
    /// Spends the budgets of events and refusals on every CPU. They fill again with the next tick of the coarse clock, a few
    /// milliseconds later.
    pub fn spend_budgets(&mut self) {
        self.must(|w| w.refill(spent()));
    }

    /// Spends the budget of refusals alone, likewise.
    pub fn spend_refusals(&mut self) {
        self.must(|w| w.set_budget(budget::REJECTS, spent()));
    }

    pub(super) fn refill(&mut self, with: Budget) -> Result<()> {
        (0..budget::BUDGETS).try_for_each(|index| self.set_budget(index, with))
    }

    fn set_budget(&mut self, index: u32, with: Budget) -> Result<()> {
        let all = vec![with; nr_cpus().map_err(|(_, error)| error)?];
        Ok(self.budget.set(index, PerCpuValues::try_from(all)?, 0)?)
    }
}
