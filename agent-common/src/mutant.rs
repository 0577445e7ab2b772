//! Mechanisms that tests take away one at a time, to see that a test notices (`cargo xtask test mutants`).
//!
//! Only builds with `SLUICE_MUTANTS=1` (`cfg(mutants)`) can: both halves then have every switch, and `SLUICE_MUTANT=NAME` in the agent's
//! environment says which one is thrown. The agent tells the programs by writing the name's number into their read-only data when it
//! loads them.

/// The number that a mechanism's name goes by in the programs: FNV-1a of 32 bits, in the machine's order. Never 0, which is nobody's.
#[must_use]
pub const fn number(name: &str) -> u32 {
    // The hash's own constants: draft-eastlake-fnv, section 5.
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let bytes = name.as_bytes();
    let mut hash = OFFSET;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u32).wrapping_mul(PRIME);
        at += 1;
    }
    if hash == 0 { 1 } else { hash }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_those_of_the_hash() {
        // The test vectors of the hash's authors.
        assert_eq!(number(""), 0x811c_9dc5);
        assert_eq!(number("a"), 0xe40c_292c);
        assert_eq!(number("foobar"), 0xbf9c_f968);
    }
}
