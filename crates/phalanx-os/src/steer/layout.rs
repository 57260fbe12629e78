//! What the program and we agree on: where each number is in the maps.

/// The most places of a group, without the parking socket.
pub const MAX_PLACES: u32 = 1024;

/// The most entries of a ring.
pub const RING: usize = 4096;

/// The place of the parking socket in the socket array.
pub(super) const PARK: u32 = MAX_PLACES;

/// The tag of connections that wait at the parking socket.
pub const PARK_TAG: u32 = u32::MAX;

/// How many moved connections are remembered.
pub(super) const MOVED: u32 = 16_384;

/// A budget that nobody exceeds; half of the range, so that no difference overflows.
pub(super) const UNLIMITED: u64 = 1 << 62;

/// Bytes of the value of the group's map. The words that are written for each connection have cache lines of
/// their own.
pub(super) const GROUP_SIZE: u32 = 256;

/// Offsets in the group's value, in bytes: words of 64 bits.
pub(super) mod group {
    /// `generation << 32 | length` of the ring that is in force.
    pub(in crate::steer) const ACTIVE: i16 = 0;
    pub(in crate::steer) const ODD: i16 = 8;
    pub(in crate::steer) const FAILED: i16 = 16;
    pub(in crate::steer) const PARKED: i16 = 24;
    pub(in crate::steer) const CURSOR_SYN: i16 = 64;
    pub(in crate::steer) const CURSOR_ACK: i16 = 128;
    pub(in crate::steer) const CURSOR_MOVED: i16 = 192;
}

/// Bytes of the value of a place: one cache line.
pub(super) const PLACE_SIZE: u32 = 64;

/// Offsets in the value of a place, in bytes: words of 64 bits.
pub(super) mod place {
    pub(in crate::steer) const SYN: i16 = 0;
    pub(in crate::steer) const ACK: i16 = 8;
    pub(in crate::steer) const MOVED_IN: i16 = 16;
    pub(in crate::steer) const GIVEN: i16 = 24;
    pub(in crate::steer) const BASE: i16 = 32;
    pub(in crate::steer) const BUDGET: i16 = 40;
    pub(in crate::steer) const GONE: i16 = 48;
    pub(in crate::steer) const TAG: i16 = 56;
}
