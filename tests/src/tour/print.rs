//! The terminal: short lines, colour where somebody looks at it.

use std::io::{IsTerminal, stdout};

const BOLD: &str = "1";
const GREEN: &str = "32";
const RED: &str = "31";
const DIM: &str = "2";
/// Columns of a full bar.
const BAR: u64 = 32;

fn painted(text: &str, code: &str) -> String {
    if stdout().is_terminal() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// A step's headline.
pub(super) fn step(number: u32, title: &str) {
    println!("\n{}", painted(&format!("{number}  {title}"), BOLD));
}

/// A line of a step.
pub(super) fn line(text: &str) {
    println!("   {text}");
}

/// What was checked, and holds.
pub(super) fn good(text: &str) {
    println!("   {} {text}", painted("ok", GREEN));
}

/// What was dropped.
pub(super) fn dropped(text: &str) {
    println!("   {} {text}", painted("dropped", RED));
}

/// By the way.
pub(super) fn aside(text: &str) {
    println!("   {}", painted(text, DIM));
}

/// A count as a bar, full at `all`.
pub(super) fn bar(name: &str, count: u64, all: u64) {
    let length = (count * BAR).div_ceil(all.max(1));
    let bar: String = (0..length).map(|_| '█').collect();
    println!("   {name:<12} {} {count}", painted(&bar, GREEN));
}

/// The end of the steps.
pub(super) fn over() {
    println!("\n{}", painted("Every step showed what it should.", BOLD));
}
