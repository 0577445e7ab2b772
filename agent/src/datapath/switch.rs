//! Features of the programs that are switched while the agent runs.

use std::mem::offset_of;

use agent_common::{Config, feature};

use super::DatapathError;
use super::pins::Pins;
use super::words::Words;

/// The pinned map `config`, open beside the datapath that wrote it at the start. Nothing else writes it afterwards but the check for drift,
/// which sets back what somebody else changed and leaves this switch as it finds it.
#[derive(Debug)]
pub struct Switch {
    config: Words<Config>,
}

impl Switch {
    /// Opens the pinned map, which must be there and checked already.
    ///
    /// # Errors
    /// It cannot be opened or mapped.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            config: Words::open(pins, "config")?,
        })
    }

    /// Whether programs report each allowed new flow ([`feature::EVENTS_ALLOWED`]).
    ///
    /// # Errors
    /// The map has no element, which no map of this layout is without.
    pub fn report_allowed(&self, on: bool) -> Result<(), DatapathError> {
        let now = self.config.read(0)?.features;
        let wanted = if on {
            now | feature::EVENTS_ALLOWED
        } else {
            now & !feature::EVENTS_ALLOWED
        };
        self.config.store(0, offset_of!(Config, features), wanted)
    }
}
