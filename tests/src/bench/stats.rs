//! Figures of many rounds: their middle and their spread.

use serde::{Deserialize, Serialize};

/// The middle of several figures, and how far they lie apart.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Half of the figures are below.
    pub median: f64,
    /// A quarter of the figures are below.
    pub low: f64,
    /// A quarter of the figures are above.
    pub high: f64,
    /// How many figures there are.
    pub count: usize,
}

impl Summary {
    /// Of figures in any order; None of none. Figures that are no numbers count as the greatest.
    pub fn of(figures: &[f64]) -> Option<Self> {
        if figures.is_empty() {
            return None;
        }
        Some(Self {
            median: quantile(figures, 0.5),
            low: quantile(figures, 0.25),
            high: quantile(figures, 0.75),
            count: figures.len(),
        })
    }

    /// Of one figure.
    pub fn one(figure: f64) -> Self {
        Self {
            median: figure,
            low: figure,
            high: figure,
            count: 1,
        }
    }

    /// Half of the distance between the quarters, as a part of the median: what a figure may be off by chance.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 {
            return 0.0;
        }
        (self.high - self.low) / 2.0 / self.median.abs()
    }

    /// The same in another unit.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        Self {
            median: self.median * factor,
            low: self.low * factor,
            high: self.high * factor,
            count: self.count,
        }
    }
}

/// The figure below which a part (0 to 1) of the figures lies; between two figures, the straight line. 0 of none.
pub fn quantile(figures: &[f64], part: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 figures")]
    let place = part.clamp(0.0, 1.0) * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    let (low, high) = (sorted[below], sorted[above]);
    low + (high - low) * (place - place.floor())
}

/// Each figure by its partner of the same round. A round without a partner, or whose partner is 0, is left out.
pub fn ratios(figures: &[f64], partners: &[f64]) -> Vec<f64> {
    figures
        .iter()
        .zip(partners)
        .filter(|(_, partner)| **partner != 0.0)
        .map(|(figure, partner)| figure / partner)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    #[test]
    fn a_summary_does_not_depend_on_the_order() {
        let up = Summary::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let down = Summary::of(&[5.0, 4.0, 3.0, 2.0, 1.0]).unwrap();
        assert_eq!(up, down);
        assert_eq!((up.low, up.median, up.high, up.count), (2.0, 3.0, 4.0, 5));
        close(up.spread(), 1.0 / 3.0);
    }

    #[test]
    fn one_wild_figure_moves_nothing() {
        let calm = Summary::of(&[1.0, 1.0, 1.0, 1.0, 1.0]).unwrap();
        let wild = Summary::of(&[1.0, 1.0, 1.0, 1.0, 900.0]).unwrap();
        assert_eq!(calm, wild);
        close(calm.spread(), 0.0);
    }

    #[test]
    fn quantiles_lie_on_the_line_between_figures() {
        close(quantile(&[10.0, 20.0], 0.5), 15.0);
        close(quantile(&[10.0, 20.0, 30.0], 0.99), 29.8);
        close(quantile(&[7.0], 0.99), 7.0);
        close(quantile(&[], 0.5), 0.0);
        assert!(Summary::of(&[]).is_none());
    }

    #[test]
    fn ratios_keep_rounds_together() {
        assert_eq!(ratios(&[2.0, 6.0, 1.0], &[1.0, 3.0]), [2.0, 2.0]);
        assert_eq!(ratios(&[2.0, 6.0], &[0.0, 3.0]), [2.0]);
    }

    #[test]
    fn another_unit_leaves_the_spread() {
        let summary = Summary::of(&[1.0, 2.0, 4.0]).unwrap();
        close(summary.scaled(1_000.0).spread(), summary.spread());
    }
}
