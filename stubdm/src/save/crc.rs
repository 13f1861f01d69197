//! CRC-32 as in zlib and Ethernet (polynomial 0xEDB88320, reflected): finds a state that was cut or altered.

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut word = n as u32;
        let mut bit = 0;
        while bit < 8 {
            word = (word >> 1) ^ (0xedb8_8320 & (word & 1).wrapping_neg());
            bit += 1;
        }
        table[n] = word;
        n += 1;
    }
    table
}

/// A sum that goes on.
#[derive(Clone, Copy, Debug)]
pub struct Crc(u32);

impl Default for Crc {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let index = (self.0 ^ u32::from(*byte)) & 0xff;
            let entry = TABLE.get(index as usize).copied().unwrap_or_default();
            self.0 = (self.0 >> 8) ^ entry;
        }
    }

    /// The sum over all bytes so far.
    pub fn sum(self) -> u32 {
        !self.0
    }
}

/// The sum over `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::default();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_answer() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
        let mut crc = Crc::default();
        crc.update(b"1234");
        crc.update(b"56789");
        assert_eq!(crc.sum(), 0xcbf4_3926);
    }
}
