//! The shortest sequence that still shows a difference: delta debugging (Zeller, Hildebrandt 2002).

use std::time::{Duration, Instant};

/// The longest that a failure is made shorter for.
const TIME: Duration = Duration::from_secs(60);

/// Takes parts out of `steps` as long as `fails` says that what is left still does.
pub fn shrink<T: Clone>(steps: &[T], mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let end = Instant::now() + TIME;
    let mut left = steps.to_vec();
    let mut chunk = left.len().div_ceil(2);
    while chunk > 0 && Instant::now() < end {
        let mut at = 0;
        let mut shorter = false;
        while at < left.len() && Instant::now() < end {
            let without: Vec<T> = [&left[..at], &left[(at + chunk).min(left.len())..]].concat();
            if fails(&without) {
                left = without;
                shorter = true;
            } else {
                at += chunk;
            }
        }
        // Single steps are tried again until none can go.
        if chunk == 1 && !shorter {
            break;
        }
        chunk = if chunk == 1 { 1 } else { chunk.div_ceil(2) };
    }
    left
}

#[cfg(test)]
mod tests {
    use super::shrink;

    #[test]
    fn what_is_left_is_what_it_takes() {
        let steps: Vec<u32> = (0..200).collect();
        let needed = [3, 77, 78, 199];
        let mut tried = 0;
        let left = shrink(&steps, |steps| {
            tried += 1;
            needed.iter().all(|n| steps.contains(n))
        });
        assert_eq!(left, needed);
        assert!(tried < 400, "{tried} tries");
    }
}
