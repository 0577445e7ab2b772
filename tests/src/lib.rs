//! What Sluice's test tiers share: the lab, the control plane, builders.

pub mod controlplane;
