//! Moments, as the JSON contract writes them.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A moment: RFC 3339 in UTC with milliseconds (`2026-11-21T14:41:05.123Z`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Time(Timestamp);

impl Time {
    /// The moment that is now.
    #[must_use]
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// How long it is from `earlier` to here; zero where it is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or_default()
    }

    /// The time of day in UTC with milliseconds: `14:41:05.123`.
    #[must_use]
    pub fn clock(self) -> String {
        let text = self.to_string();
        text.split_once('T').map_or_else(
            || text.clone(),
            |(_, time)| time.trim_end_matches('Z').to_owned(),
        )
    }
}

impl From<SystemTime> for Time {
    /// Moments beyond the years that RFC 3339 can write become the first or last of them.
    fn from(time: SystemTime) -> Self {
        let nanos = |d: Duration| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX);
        let since_epoch = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => nanos(after),
            Err(before) => -nanos(before.duration()),
        };
        Self(
            Timestamp::from_nanosecond(since_epoch).unwrap_or(if since_epoch < 0 {
                Timestamp::MIN
            } else {
                Timestamp::MAX
            }),
        )
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_json_to_the_millisecond() {
        let time = Time::from(SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_272_065_123));
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(json, "\"2026-11-21T14:41:05.123Z\"");
        assert_eq!(serde_json::from_str::<Time>(&json).unwrap(), time);
        assert_eq!(time.clock(), "14:41:05.123");
    }

    #[test]
    fn since_is_zero_where_the_clock_went_back() {
        let early = Time::from(SystemTime::UNIX_EPOCH);
        let late = Time::from(SystemTime::UNIX_EPOCH + Duration::from_secs(90));
        assert_eq!(late.since(early), Duration::from_secs(90));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
