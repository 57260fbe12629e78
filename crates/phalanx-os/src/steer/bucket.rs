//! Which of the 4,096 buckets a client's address falls into.

use std::net::IpAddr;

/// The bucket of a client, as the program computes it for [`Rule::Sticky`](super::Rule::Sticky).
///
/// An IPv4 address and the IPv6 address that maps it are one client. An address is read as 32-bit words in the
/// network's byte order; with
///
/// ```text
/// mix(x): x ^= x >> 16;  x *= 0x045d9f3b;  x ^= x >> 16;  x *= 0x045d9f3b;  x ^= x >> 16
/// ```
///
/// the bucket is `mix(w)` for IPv4 and `mix(mix(mix(mix(w0) ^ w1) ^ w2) ^ w3)` for IPv6, of which the lowest
/// 12 bits count.
///
/// ```
/// # use phalanx_os::steer::bucket;
/// let of = |client: &str| bucket(client.parse().unwrap());
/// assert_eq!([of("127.0.0.1"), of("::ffff:127.0.0.1"), of("192.0.2.1")], [3851, 3851, 690]);
/// assert_eq!([of("::1"), of("2001:db8::1")], [2983, 1992]);
/// ```
#[must_use]
pub fn bucket(client: IpAddr) -> u32 {
    let hash = match client.to_canonical() {
        IpAddr::V4(v4) => mix(v4.to_bits()),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            [96, 64, 32, 0].iter().fold(0, |hash, shift| mix(hash ^ (bits >> shift) as u32))
        }
    };
    hash & (super::RING as u32 - 1)
}

/// The multiplier of [`bucket`].
pub(super) const MULTIPLIER: u32 = 0x045d_9f3b;

fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(MULTIPLIER);
    x ^= x >> 16;
    x = x.wrapping_mul(MULTIPLIER);
    x ^ x >> 16
}
