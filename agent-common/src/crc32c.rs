//! CRC32c (Castagnoli), SCTP's checksum (RFC 9260 6.8 and appendix A), where the first word of a message changes.
//!
//! A CRC is linear: two messages of one length that differ by `d` have checksums that differ by the remainder of `d` alone, without the
//! first and last complement, which cancel out. Of a `d` that is zero behind the first four bytes that is those four, times x to the power of the
//! bits of the message, modulo the polynomial. So new ports cost the same in every packet, and nobody reads its payload.
//!
//! The checksum's own field counts as zero while it is computed (RFC 9260 6.8), in both messages, so it is no part of `d`. It stands in the header with the
//! lowest byte first (appendix A): in the reflected form, which is the one here, where bit 31 of a word is the coefficient of x^0, as memory has it.
//!
//! The power is taken apart by the length's digits to base 16: four products, each by one of sixteen constants. A product by a constant is
//! linear too, so it is read from a table by its factor's half bytes. That is 32 loads, and **no branch on data**: in programs of several functions
//! older verifiers (Linux 6.1's among them) hold states apart by every number in them, and one that decided by each bit, of the length or of a
//! factor, as the multiplication of schoolbooks does, would have them walk two states for each.

/// The polynomial of RFC 9260 appendix A (0x1EDC6F41), reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^0.
const ONE: u32 = 1 << 31;
/// x^8: a byte further on.
const BYTE: u32 = 1 << 23;
/// Values of a half byte.
const DIGIT: usize = 16;
/// Half bytes of a word.
const HALVES: usize = 8;
/// Digits of a length: 65,535 bytes at most.
const DIGITS: usize = 4;

/// What the half bytes of a word become under a product, by their place and value.
type Product = [[u32; DIGIT]; HALVES];

/// Products by x^(8 n), by the digit's place in `n` and its value. 32 KiB of read-only data.
static SHIFTS: [[Product; DIGIT]; DIGITS] = shifts();

/// A polynomial times x.
const fn times_x(word: u32) -> u32 {
    (word >> 1) ^ if word & 1 != 0 { POLYNOMIAL } else { 0 }
}

/// The product of two polynomials.
const fn times(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = times_x(b);
        bit >>= 1;
    }
    product
}

/// Everything times `factor`.
const fn product(factor: u32) -> Product {
    // What each bit of a word stands for, times the factor: bit 31 is the factor itself, each below it one x more.
    let mut bits = [factor; 32];
    let mut bit = 31;
    while bit > 0 {
        bits[bit - 1] = times_x(bits[bit]);
        bit -= 1;
    }
    let mut table = [[0; DIGIT]; HALVES];
    let mut half = 0;
    while half < HALVES {
        let mut value = 1;
        while value < DIGIT {
            // The lowest bit, and the rest, which has its entry already.
            let low = value.trailing_zeros() as usize;
            table[half][value] = table[half][value & (value - 1)] ^ bits[half * 4 + low];
            value += 1;
        }
        half += 1;
    }
    table
}

const fn shifts() -> [[Product; DIGIT]; DIGITS] {
    let mut all = [[[[0; DIGIT]; HALVES]; DIGIT]; DIGITS];
    let mut unit = BYTE;
    let mut place = 0;
    while place < DIGITS {
        let mut factor = ONE;
        let mut digit = 0;
        while digit < DIGIT {
            all[place][digit] = product(factor);
            factor = times(factor, unit);
            digit += 1;
        }
        unit = factor;
        place += 1;
    }
    all
}

/// What the checksum of a message of `length` bytes (65,535 at most) changes by, by exclusive or, when the message's first four bytes change by
/// `delta`, likewise. Both as words in memory order: as the machine loads them from the packet, and stores them there.
#[inline(always)]
#[must_use]
pub fn change(delta: u32, length: u32) -> u32 {
    let mut word = u32::from_le(delta);
    for (place, by_digit) in SHIFTS.iter().enumerate() {
        let by = &by_digit[(length >> (4 * place)) as usize % DIGIT];
        let half = |n: usize| by[n][(word >> (4 * n)) as usize % DIGIT];
        word = half(0) ^ half(1) ^ half(2) ^ half(3) ^ half(4) ^ half(5) ^ half(6) ^ half(7);
    }
    word.to_le()
}

#[cfg(test)]
mod tests {
    use super::{POLYNOMIAL, change};

    /// The longest message.
    const LONGEST: usize = 65_535;

    /// The whole of it, bit by bit.
    fn of(bytes: &[u8]) -> u32 {
        let mut remainder = u32::MAX;
        for byte in bytes {
            remainder ^= u32::from(*byte);
            for _ in 0..8 {
                let out = remainder & 1 != 0;
                remainder >>= 1;
                if out {
                    remainder ^= POLYNOMIAL;
                }
            }
        }
        !remainder
    }

    #[test]
    fn the_whole_is_that_of_rfc_3720_appendix_b_4() {
        let (mut up, mut down) = ([0; 32], [0; 32]);
        for n in 0..32u8 {
            up[usize::from(n)] = n;
            down[31 - usize::from(n)] = n;
        }
        // A read (10) command of iSCSI.
        let mut command = [0; 48];
        for (at, byte) in [
            (0, 0x01),
            (1, 0xc0),
            (16, 0x14),
            (22, 0x04),
            (27, 0x14),
            (31, 0x18),
            (32, 0x28),
            (40, 0x02),
        ] {
            command[at] = byte;
        }
        let table: [(&[u8], [u8; 4]); 5] = [
            (&[0; 32], [0xaa, 0x36, 0x91, 0x8a]),
            (&[0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
            (&up, [0x4e, 0x79, 0xdd, 0x46]),
            (&down, [0x5c, 0xdb, 0x3f, 0x11]),
            (&command, [0x56, 0x3a, 0x96, 0xd9]),
        ];
        for (bytes, wanted) in table {
            assert_eq!(of(bytes).to_le_bytes(), wanted);
        }
        assert_eq!(
            of(b"123456789"),
            0xe306_9283,
            "the check value that catalogues name"
        );
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    struct Dice(u64);

    impl Dice {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        fn fill(&mut self, bytes: &mut [u8]) {
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
            }
        }
    }

    /// A packet's first word in memory order.
    fn word(bytes: &[u8]) -> u32 {
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Rewrites the ports of a random packet by [`change`], and computes the whole of what comes out anew.
    fn hold(dice: &mut Dice, packet: &mut [u8], ports: [u8; 4]) {
        dice.fill(packet);
        packet[8..12].fill(0);
        let field = of(packet).to_le_bytes();
        let delta = word(packet) ^ u32::from_ne_bytes(ports);
        packet[..4].copy_from_slice(&ports);
        let length = u32::try_from(packet.len()).expect("a length of a packet");
        let told = word(&field) ^ change(delta, length);
        assert_eq!(
            told.to_ne_bytes(),
            of(packet).to_le_bytes(),
            "{} bytes, by {delta:08x}",
            packet.len()
        );
    }

    #[test]
    fn new_ports_change_the_checksum_as_if_it_were_computed_anew() {
        let mut memory = [0; LONGEST];
        let mut dice = Dice(1);
        let ports = |dice: &mut Dice| {
            let [a, b, c, d, ..] = dice.next().to_le_bytes();
            [a, b, c, d]
        };
        for length in 12..600 {
            let new = ports(&mut dice);
            hold(&mut dice, &mut memory[..length], new);
        }
        for _ in 0..100 {
            let length = 12 + usize::try_from(dice.next() % (LONGEST as u64 - 11)).expect("small");
            let new = ports(&mut dice);
            hold(&mut dice, &mut memory[..length], new);
        }
        // Each digit of the length, and each bit of the ports.
        for place in 0..16 {
            for length in [1 << place, (1 << place) - 1, LONGEST - (1 << place)] {
                if length >= 12 {
                    let new = ports(&mut dice);
                    hold(&mut dice, &mut memory[..length], new);
                }
            }
        }
        for bit in 0..32 {
            assert_ne!(change(1 << bit, 1_452), 0);
        }
        assert_eq!(change(0, 1_452), 0);
    }
}
