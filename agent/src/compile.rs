//! From the cluster to what the maps should say. Pure: no I/O, no clock.

pub mod endpoints;
pub mod services;
