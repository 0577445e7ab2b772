//! Times on the command line, as Kubernetes' components write them: `90s`, `24h`, `1h30m0s`, or a bare number of seconds.

use std::fmt;
use std::str::FromStr;

/// Units, in seconds.
const UNITS: [(char, u32); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Whole seconds, one at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seconds(pub u32);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let total = text.parse().ok().or_else(|| with_units(text));
        match total {
            Some(0) => Err("at least a second is needed".to_owned()),
            Some(total) => Ok(Self(total)),
            None => Err("write a time such as 90s, 24h or 1h30m".to_owned()),
        }
    }
}

/// The shortest text.
impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS
            .into_iter()
            .skip(1)
            .find(|(_, unit)| self.0.is_multiple_of(*unit));
        let (name, unit) = unit.unwrap_or(('s', 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

fn with_units(text: &str) -> Option<u32> {
    let mut total = 0u32;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest.get(..digits)?.parse().ok()?;
        let unit = rest.get(digits..)?.chars().next()?;
        let (_, seconds) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.checked_mul(seconds)?)?;
        rest = rest.get(digits + unit.len_utf8()..)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_kubernetes_writes_them() {
        for (text, wanted) in [
            ("90", 90),
            ("90s", 90),
            ("24h0m0s", 86_400),
            ("1h30m", 5_400),
            ("5d", 432_000),
        ] {
            assert_eq!(text.parse(), Ok(Seconds(wanted)), "{text}");
        }
        for wrong in [
            "",
            "0",
            "0s",
            "h",
            "5x",
            "1.5h",
            "-1",
            "5000000000s",
            "99999d",
            "3é",
        ] {
            assert!(wrong.parse::<Seconds>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for wanted in [1, 59, 60, 90, 130, 600, 3_600, 86_400] {
            assert_eq!(Seconds(wanted).to_string().parse(), Ok(Seconds(wanted)));
        }
        assert_eq!(Seconds(86_400).to_string(), "24h");
        assert_eq!(Seconds(90).to_string(), "90s");
    }
}
