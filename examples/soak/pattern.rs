//! The bytes of a generation: a function of what it is, so that every read can be checked alone.
//!
//! What lives here: [`Body`], the bytes of its tensors, and the way back from bytes to a body. What does
//! not: which tensors a set has (`roles`), what a lease's bodies must be to each other (`check`).

use crate::random::mix;

/// What tells one set of bytes from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Body {
    /// Unique in the run.
    pub uid: u64,
    /// What the set is.
    pub role: usize,
    /// The transaction that it came with; 0 for none.
    pub stamp: u64,
}

/// `uid`, role and tensor, `stamp`.
const HEAD: usize = 24;
/// The shortest tensor that can be checked.
pub const SHORTEST: usize = HEAD + 8;

impl Body {
    fn word(&self, tensor: u32, len: usize, at: usize) -> u64 {
        match at {
            0 => self.uid,
            1 => (self.role as u64) << 32 | u64::from(tensor),
            2 => self.stamp,
            _ => {
                let key = self.uid ^ mix(self.role as u64) ^ self.stamp.rotate_left(17);
                mix(key ^ mix(u64::from(tensor) << 40 ^ (len as u64) << 20 ^ at as u64))
            }
        }
    }

    /// The bytes of its tensor number `tensor`, `len` of them.
    pub fn bytes(&self, tensor: u32, len: usize) -> Vec<u8> {
        assert!(len >= SHORTEST);
        let words = (0..len.div_ceil(8)).flat_map(|at| self.word(tensor, len, at).to_le_bytes());
        words.take(len).collect()
    }

    /// Whose bytes these are: all of them, of tensor number `tensor`, or the first that is wrong.
    pub fn of(bytes: &[u8], tensor: u32) -> Result<Self, String> {
        if bytes.len() < SHORTEST {
            return Err(format!("{} bytes are too few", bytes.len()));
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at * 8..][..8]);
            u64::from_le_bytes(word)
        };
        let body = Body {
            uid: word(0),
            role: (word(1) >> 32) as usize,
            stamp: word(2),
        };
        for (at, have) in bytes.chunks(8).enumerate() {
            let want = body.word(tensor, bytes.len(), at).to_le_bytes();
            if *have != want[..have.len()] {
                return Err(format!(
                    "byte {} of {}: {have:02x?} is not {:02x?} of {body:?}",
                    at * 8,
                    bytes.len(),
                    &want[..have.len()]
                ));
            }
        }
        Ok(body)
    }
}

/// A checksum of bytes that came from a file.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Body = Body {
        uid: 77,
        role: 5,
        stamp: 9,
    };

    #[test]
    fn bytes_lead_back_to_their_body() {
        for len in [32, 33, 100, 4097] {
            assert_eq!(Body::of(&ONE.bytes(3, len), 3), Ok(ONE));
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        let good = ONE.bytes(3, 101);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Body::of(&bad, 3).is_err(), "byte {at}");
        }
    }

    #[test]
    fn bytes_of_two_bodies_or_tensors_or_lengths_do_not_pass_for_one() {
        let other = Body { uid: 78, ..ONE };
        let mut torn = ONE.bytes(3, 64);
        torn[40..].copy_from_slice(&other.bytes(3, 64)[40..]);
        assert!(Body::of(&torn, 3).is_err());
        assert!(Body::of(&ONE.bytes(4, 64), 3).is_err());
        assert!(Body::of(&ONE.bytes(3, 65)[..64], 3).is_err());
    }

    #[test]
    fn a_checksum_tells_order_and_length() {
        let sums = [&[1, 2][..], &[2, 1], &[1, 2, 0], &[1]].map(checksum);
        for (at, sum) in sums.iter().enumerate() {
            assert!(!sums[..at].contains(sum));
        }
    }
}
