//! What the tests of this module and of its users share.

pub(crate) mod fixture;
pub(crate) mod golden;
