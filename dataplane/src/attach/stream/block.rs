//! The payload of a part that announces a block of guest memory: number u16, bytes u64, name.
//!
//! Big-endian. Written by the cutter, read by the rebuilder.

/// Bytes before the name.
const FIXED_BYTES: usize = 2 + 8;

/// Writes an announcement and returns its length.
pub(super) fn write_block(number: u16, bytes: u64, idstr: &[u8], out: &mut [u8]) -> usize {
    out[..2].copy_from_slice(&number.to_be_bytes());
    out[2..FIXED_BYTES].copy_from_slice(&bytes.to_be_bytes());
    out[FIXED_BYTES..][..idstr.len()].copy_from_slice(idstr);
    FIXED_BYTES + idstr.len()
}

/// Reads an announcement: number, bytes, name. Whether they make sense is for the emitter to say.
pub(super) fn read_block(payload: &[u8]) -> Option<(u16, u64, &[u8])> {
    let (number, rest) = payload.split_first_chunk::<2>()?;
    let (bytes, idstr) = rest.split_first_chunk::<8>()?;
    Some((u16::from_be_bytes(*number), u64::from_be_bytes(*bytes), idstr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_back() {
        let mut out = [0; 300];
        let bytes = write_block(7, 1 << 40, b"pc.ram", &mut out);
        assert_eq!(read_block(&out[..bytes]), Some((7, 1 << 40, &b"pc.ram"[..])));
        assert_eq!(read_block(&out[..9]), None);
    }
}
