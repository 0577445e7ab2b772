//! Counts of a run, and what it takes for one to count.

use std::fmt;
use std::time::Duration;

use super::judge::Judgement;

/// The least of each that a minute of a run must have, or it proves nothing. About a third of what a run has on two cores
/// with a debug build.
#[derive(Debug, Clone, Copy)]
pub struct Minimum {
    /// Changes a minute.
    pub changes: u64,
    /// Kills of an agent a minute.
    pub kills: u64,
    /// Requests judged a minute: new connections, requests in held ones, and datagrams of streams.
    pub requests: u64,
    /// Of the requests, in hundredths: those for which only one outcome was right.
    pub decided: u64,
    /// Requests a minute that policy had to meet with silence, and did.
    pub denied: u64,
}

/// A run shorter than this proves nothing: there is not even one kill in it. What is wanted of it is what is wanted of one that is as long.
pub const SHORTEST: Duration = Duration::from_secs(15);

/// See [`Minimum`].
pub const MINIMUM: Minimum = Minimum {
    changes: 60,
    kills: 4,
    requests: 3000,
    decided: 50,
    denied: 60,
};

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Changes of services, endpoints, policies, labels, pods and links.
    pub changes: u64,
    /// Agents killed.
    pub kills: u64,
    /// Requests judged.
    pub requests: u64,
    /// Of these, those with only one right outcome.
    pub decided: u64,
    /// Of these, those that met silence.
    pub denied: u64,
    /// Requests of which nothing can be said: an end of theirs came or went.
    pub excused: u64,
    /// Verdicts that no state gives.
    pub wrong: u64,
    /// Allowed, and never answered.
    pub lost: u64,
    /// Allowed, and reset.
    pub reset: u64,
    /// Packets that the agents' programs dropped, for any reason.
    pub dropped: u64,
}

impl Tally {
    pub(super) fn note(&mut self, judgement: &Judgement) {
        self.requests += 1;
        match judgement {
            Judgement::Right { decided, denied } => {
                self.decided += u64::from(*decided);
                self.denied += u64::from(*denied);
            }
            Judgement::Excused => self.excused += 1,
            Judgement::Wrong(_) => self.wrong += 1,
            Judgement::Lost(_) => self.lost += 1,
            Judgement::Reset(_) => self.reset += 1,
        }
    }

    /// How many went wrong.
    pub fn failures(&self) -> u64 {
        self.wrong + self.lost + self.reset
    }

    /// What is wrong with a run of this length, a line each; empty for one that is clean and counts, which takes [`SHORTEST`] at least.
    pub fn complaints(&self, took: Duration, minimum: &Minimum) -> Vec<String> {
        let mut complaints = Vec::new();
        for (count, what) in [
            (self.wrong, "wrong verdicts"),
            (self.lost, "lost"),
            (self.reset, "reset"),
        ] {
            if count > 0 {
                complaints.push(format!("{count} {what}"));
            }
        }
        let seconds = took.max(SHORTEST).as_secs();
        let least = |a_minute: u64| a_minute * seconds / 60;
        for (count, a_minute, what) in [
            (self.changes, minimum.changes, "changes"),
            (self.kills, minimum.kills, "kills"),
            (self.requests, minimum.requests, "requests"),
            (
                self.denied,
                minimum.denied,
                "requests that policy had to stop",
            ),
        ] {
            let least = least(a_minute);
            if count < least {
                complaints.push(format!("{count} {what}, at least {least} are wanted"));
            }
        }
        let share = self.decided * 100 / self.requests.max(1);
        if share < minimum.decided {
            let least = minimum.decided;
            complaints.push(format!(
                "{share} % of the requests had one right outcome, at least {least} % are wanted"
            ));
        }
        if self.dropped < self.denied {
            let (denied, dropped) = (self.denied, self.dropped);
            complaints.push(format!(
                "{denied} requests met silence, but the programs dropped {dropped} packets"
            ));
        }
        complaints
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "changes {}, kills {}, requests {} (one right outcome: {}, of these denied: {}; excused: {}), \
             packets dropped {}, wrong verdicts {}, lost {}, reset {}",
            self.changes,
            self.kills,
            self.requests,
            self.decided,
            self.denied,
            self.excused,
            self.dropped,
            self.wrong,
            self.lost,
            self.reset
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn clean() -> Tally {
        Tally {
            changes: 100,
            kills: 10,
            requests: 9000,
            decided: 8000,
            denied: 900,
            dropped: 2000,
            ..Tally::default()
        }
    }

    #[test]
    fn a_run_that_is_clean_and_long_enough_has_no_complaint() {
        assert!(clean().complaints(MINUTE, &MINIMUM).is_empty());
    }

    #[test]
    fn a_run_of_no_time_with_nothing_in_it_is_no_clean_run() {
        for took in [Duration::ZERO, SHORTEST] {
            let complaints = Tally::default().complaints(took, &MINIMUM);
            for what in ["changes", "kills", "requests,", "had to stop"] {
                assert!(
                    complaints
                        .iter()
                        .any(|c| c.starts_with("0 ") && c.contains(what)),
                    "{what}: {complaints:?}"
                );
            }
        }
        // What is enough for a minute is enough for less.
        assert!(clean().complaints(Duration::ZERO, &MINIMUM).is_empty());
    }

    #[test]
    fn each_failure_and_each_missing_minimum_is_a_complaint() {
        let spoilt: [fn(&mut Tally); 9] = [
            |t| t.wrong = 1,
            |t| t.lost = 1,
            |t| t.reset = 1,
            |t| t.changes = 59,
            |t| t.kills = 3,
            |t| t.requests = 2999,
            |t| t.decided = 4000,
            |t| t.denied = 59,
            |t| t.dropped = 899,
        ];
        for spoil in spoilt {
            let mut tally = clean();
            spoil(&mut tally);
            assert!(!tally.complaints(MINUTE, &MINIMUM).is_empty(), "{tally}");
        }
    }
}
