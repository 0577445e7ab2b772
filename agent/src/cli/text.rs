//! What the commands print for people.

pub(super) mod endpoints;
pub(super) mod flows;
pub(super) mod policies;
pub(super) mod services;
pub(super) mod status;

use std::time::Duration;

/// What stands where there is nothing to say.
const NONE: &str = "-";

/// A duration in its two greatest units: `3d4h`, `2m30s`, `1.25ms`.
fn duration(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{duration:.2?}"),
        1..MINUTE => format!("{seconds}s"),
        MINUTE..HOUR => format!("{}m{}s", seconds / MINUTE, seconds % MINUTE),
        HOUR..DAY => format!("{}h{}m", seconds / HOUR, seconds % HOUR / MINUTE),
        _ => format!("{}d{}h", seconds / DAY, seconds % DAY / HOUR),
    }
}

/// `1 pod`, `2 pods`.
pub(in crate::cli) fn counted(count: usize, one: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {one}s")
    }
}

/// A list, or a dash.
fn listed<T: ToString>(items: &[T], separator: &str) -> String {
    if items.is_empty() {
        return NONE.to_owned();
    }
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    items.join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let text = |millis| duration(Duration::from_millis(millis));
        assert_eq!(text(1), "1.00ms");
        assert_eq!(text(59_999), "59s");
        assert_eq!(text(150_000), "2m30s");
        assert_eq!(text(3_700_000), "1h1m");
        assert_eq!(text(100 * 3_600_000), "4d4h");
    }
}
