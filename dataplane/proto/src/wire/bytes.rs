//! Reading and writing of big-endian integers in slices whose length was checked before.
//!
//! Used by the fixed layouts of this folder on every thread. A range outside the slice is our own
//! bug and panics: callers check the length first and answer with a typed error.

/// The `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// The `u16` at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// The `u32` at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// The `u64` at `at`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// Writes `field` at `*at` and moves `*at` behind it.
pub(super) fn put(out: &mut [u8], at: &mut usize, field: &[u8]) {
    out[*at..*at + field.len()].copy_from_slice(field);
    *at += field.len();
}
