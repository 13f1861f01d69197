//! VNC authentication (RFC 6143, 7.2.2).

use des::Des;
use des::cipher::generic_array::GenericArray;
use des::cipher::{BlockEncrypt, KeyInit};

/// Bytes of the server's challenge and of its response. Those of a password that count are half as
/// many.
pub(crate) const CHALLENGE: usize = 16;

/// Encrypts the challenge: DES with the password as the key, each of whose bytes has its bits in
/// reverse order.
pub(crate) fn respond(password: &[u8], challenge: &[u8; CHALLENGE]) -> [u8; CHALLENGE] {
    let mut key = [0; CHALLENGE / 2];
    for (byte, given) in key.iter_mut().zip(password) {
        *byte = given.reverse_bits();
    }
    let cipher = Des::new(&key.into());
    let mut response = *challenge;
    for block in response.chunks_exact_mut(CHALLENGE / 2) {
        cipher.encrypt_block(GenericArray::from_mut_slice(block));
    }
    response
}

/// Compares in a time that does not depend on where the two differ.
pub(crate) fn equal(one: &[u8; CHALLENGE], other: &[u8; CHALLENGE]) -> bool {
    let differing = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_equal_to_itself_alone() {
        let response = respond(b"password", &[7; CHALLENGE]);
        assert!(equal(&response, &response));
        for at in 0..CHALLENGE * 8 {
            let mut other = response;
            other[at / 8] ^= 1 << (at % 8);
            assert!(!equal(&response, &other), "bit {at}");
        }
        // A short password is filled up with zeroes, and eight bytes of a long one count.
        let challenge = [9; CHALLENGE];
        assert_eq!(
            respond(b"ab", &challenge),
            respond(b"ab\0\0\0\0\0\0", &challenge)
        );
        assert_eq!(
            respond(b"12345678", &challenge),
            respond(b"123456789", &challenge)
        );
        assert_ne!(
            respond(b"12345678", &challenge),
            respond(b"1234567", &challenge)
        );
    }
}
