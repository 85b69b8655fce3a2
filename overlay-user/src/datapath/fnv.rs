//! FNV-1a, a hash that every version of the agent must compute alike (the standard library promises no such thing).

/// The hash of these bytes.
pub(super) fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
