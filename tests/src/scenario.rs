//! Scenarios: manifests in, the sorted dump of the maps out.
//!
//! A scenario is one text of sections, after the manner of Go's txtar. The lines before the first say which rule of SEMANTICS.md it
//! is about, and may set options (`# ip-block-mode: cilium`, `# unknown-pod: deny`, and where what
//! happened before counts `# restart: differs`, `# oracle: differs`). Then:
//!
//! ```text
//! -- local --           the node's own state: `links` (ifindex, name, addresses), `addresses`
//! -- anything.yaml --   a file of the manifests directory, new or in place of the one of that name
//! -- rm anything.yaml -- that file is gone
//! -- writes --          the step's writes, by map (optional)
//! -- expect --          what the maps say and what the agent tells of it; it ends a step
//! ```
//!
//! The node is `n1`. The real conversion, loop, compiler and plan run; only the kernel's maps are in memory.

mod format;
mod oracle;
mod order;
mod run;
mod shared;

pub use format::{Scenario, Section, Step};
pub use oracle::hold;
pub use order::Order;
pub use run::{Agent, Outcome, is_empty, run};
pub use shared::Shared;

/// The node of every scenario.
pub const NODE: &str = "n1";
