//! SCTP's checksum by RFC 9260 appendix A, word for word: the remainder by its polynomial, bits taken lowest first.

/// The polynomial, without its highest term.
const POLYNOMIAL: u32 = 0x1edc_6f41;

/// The four bytes of the checksum as they stand in an SCTP packet, whose own count as zero (RFC 9260 6.8).
///
/// A packet without a whole common header has none: zeros.
pub fn of_sctp(packet: &[u8]) -> [u8; 4] {
    let (Some(before), Some(behind)) = (packet.get(..8), packet.get(12..)) else {
        return [0; 4];
    };
    let mut remainder = u32::MAX;
    for byte in before.iter().chain(&[0; 4]).chain(behind) {
        for bit in 0..8 {
            let out = (remainder >> 31) ^ u32::from((byte >> bit) & 1);
            remainder <<= 1;
            if out != 0 {
                remainder ^= POLYNOMIAL;
            }
        }
    }
    // The remainder's highest bit goes first, and bytes go lowest bit first.
    (!remainder).reverse_bits().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::of_sctp;

    /// From RFC 3720 B.4: 32 bytes of zeros, and a command of iSCSI whose bytes 8 to 11 are zeros, as a checksum's place is.
    #[test]
    fn the_published_examples_hold() {
        assert_eq!(of_sctp(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
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
        assert_eq!(of_sctp(&command), [0x56, 0x3a, 0x96, 0xd9]);
        command[8..12].fill(7);
        assert_eq!(of_sctp(&command), [0x56, 0x3a, 0x96, 0xd9]);
    }
}
