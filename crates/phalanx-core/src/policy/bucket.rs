//! From a client's address to a number, the same in hand-off and in the kernel's program.

use crate::Slot;
use crate::rng::mix;
use std::net::IpAddr;

/// How many there are.
pub const COUNT: usize = 4096;

/// The bucket of a client. IPv4 addresses give the same whether they come plain or mapped into IPv6, as on a
/// dual-stack listener.
pub fn of(ip: IpAddr) -> u32 {
    let hash = match ip.to_canonical() {
        IpAddr::V4(ip) => mix32(ip.to_bits()),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            [96, 64, 32, 0].into_iter().fold(0, |hash, shift| mix32(hash ^ (bits >> shift) as u32))
        }
    };
    hash % COUNT as u32
}

const fn mix32(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x045d_9f3b);
    x ^= x >> 16;
    x = x.wrapping_mul(0x045d_9f3b);
    x ^ (x >> 16)
}

/// How much a slot wants a bucket: the highest score gets it (rendezvous hashing). A weight multiplies a
/// slot's chances, and a change of one weight moves no bucket between two others.
pub(crate) fn score(bucket: u32, slot: Slot, weight: u32) -> u64 {
    let hash = mix(u64::from(bucket) ^ mix(u64::from(slot.0)));
    // -weight / ln(u), with u in (0, 1]: the usual weighted rendezvous score, as an integer that compares
    // alike. Positive floats compare like their bits.
    let unit = ((hash >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    (-f64::from(weight) / unit.ln().min(-f64::MIN_POSITIVE)).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's program computes the same: these are its test vectors too.
    #[test]
    fn known_buckets() {
        let of = |text: &str| of(text.parse().unwrap());
        assert_eq!(of("127.0.0.1"), 3851);
        assert_eq!(of("192.0.2.1"), 690);
        assert_eq!(of("255.255.255.255"), 2127);
        assert_eq!(of("::1"), 2983);
        assert_eq!(of("2001:db8::1"), 1992);
        assert_eq!(of("192.0.2.7"), of("::ffff:192.0.2.7"));
        assert_ne!(of("2001:db8::1"), of("2001:db8::2"));
        assert!((0..4096).contains(&of("::1")));
    }
}
