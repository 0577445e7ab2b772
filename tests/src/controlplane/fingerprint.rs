//! A name for a content.

/// 64-bit FNV-1a: names a cache folder alike in every version of this program. It guards against nobody.
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;

    pub(super) fn new() -> Self {
        Self(Self::OFFSET_BASIS)
    }

    /// Takes in a text and its end, so that a word moved from one file to the next changes the value.
    pub(super) fn add(&mut self, text: &str) {
        for byte in text.bytes().chain([0]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(Self::PRIME);
        }
    }

    pub(super) fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_is_another_folder() {
        let of = |texts: &[&str]| {
            let mut fingerprint = Fingerprint::new();
            texts.iter().for_each(|text| fingerprint.add(text));
            fingerprint.value()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ba"]));
        assert_eq!(of(&["ab"]), of(&["ab"]));
    }
}
