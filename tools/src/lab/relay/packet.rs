//! Packets as a TUN device gives them: one segment, or many that are not cut yet.
//!
//! Pure. A large packet goes through the link whole, since the kernel handles one of 64 KiB as
//! quickly as one of 1500 bytes. It is cut only where its segments have different fates; a cut
//! repairs lengths, sequence numbers and the part of the checksum that the kernel left us to keep.

use dwcp_ffi::lab::VNET_HEADER_BYTES;
use std::ops::Range;

/// The largest packet with its header.
pub(super) const PACKET_BYTES_MAX: usize = VNET_HEADER_BYTES + (64 << 10);

/// Fields of the header before each packet, see `linux/virtio_net.h`.
const GSO_TYPE: usize = 1;
const HEADER_BYTES: Range<usize> = 2..4;
const SEGMENT_BYTES: Range<usize> = 4..6;
const CHECKSUM_START: Range<usize> = 6..8;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
/// A bit beside the type: the packet carries ECN.
const GSO_ECN: u8 = 0x80;

/// Offsets in the TCP header.
const TCP_SEQUENCE: Range<usize> = 4..8;
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: Range<usize> = 16..18;
const TCP_HEADER_BYTES_MIN: usize = 20;
const FIN_AND_PSH: u8 = 0x09;
const CWR: u8 = 0x80;
const PROTOCOL_TCP: u32 = 6;

const IP_HEADER_BYTES_MIN: usize = 20;

/// How a packet divides into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes from the IP header to the payload, the same in every segment.
    header_bytes: usize,
    /// Where the TCP header starts, behind the IP header.
    tcp_at: usize,
    /// Payload of every segment but the last.
    segment_bytes: usize,
    /// Payload of all.
    payload_bytes: usize,
}

impl Shape {
    /// Reads the shape of a packet with its header; a packet that is one segment has the trivial
    /// one.
    pub(super) fn of(packet: &[u8]) -> Self {
        let ip = &packet[VNET_HEADER_BYTES..];
        let whole = Self { header_bytes: ip.len(), tcp_at: 0, segment_bytes: 1, payload_bytes: 0 };
        if packet[GSO_TYPE] & !GSO_ECN != GSO_TCP4 {
            return whole;
        }
        let tcp_at = native(packet, CHECKSUM_START);
        let segment_bytes = native(packet, SEGMENT_BYTES);
        if tcp_at < IP_HEADER_BYTES_MIN || ip.len() < tcp_at + TCP_HEADER_BYTES_MIN {
            return whole;
        }
        let header_bytes = tcp_at + usize::from(ip[tcp_at + TCP_DATA_OFFSET] >> 4) * 4;
        if segment_bytes == 0 || header_bytes >= ip.len() {
            return whole;
        }
        Self { header_bytes, tcp_at, segment_bytes, payload_bytes: ip.len() - header_bytes }
    }

    /// How many segments it is on the wire.
    pub(super) fn segments(&self) -> u64 {
        self.payload_bytes.div_ceil(self.segment_bytes).max(1) as u64
    }

    /// Bytes of IP on the wire of some of the segments.
    pub(super) fn wire_bytes(&self, segments: Range<u64>) -> u64 {
        let count = segments.end - segments.start;
        let payload = self.payload(segments);
        count * self.header_bytes as u64 + payload.len() as u64
    }

    /// Segments of the largest size that fit into so many bytes.
    pub(super) fn fitting(&self, bytes: u64) -> u64 {
        bytes / (self.header_bytes + self.segment_bytes) as u64
    }

    fn payload(&self, segments: Range<u64>) -> Range<usize> {
        let at = |segment: u64| (segment as usize * self.segment_bytes).min(self.payload_bytes);
        at(segments.start)..at(segments.end)
    }

    /// Some of the segments of a packet as a packet of their own, with its header.
    pub(super) fn cut(&self, packet: &[u8], segments: Range<u64>) -> Vec<u8> {
        if segments == (0..self.segments()) {
            return packet.to_vec();
        }
        let payload = self.payload(segments.clone());
        let head = VNET_HEADER_BYTES + self.header_bytes;
        let mut part = Vec::with_capacity(head + payload.len());
        part.extend_from_slice(&packet[..head]);
        part.extend_from_slice(&packet[head + payload.start..head + payload.end]);
        if segments.end - segments.start == 1 {
            part[GSO_TYPE] = GSO_NONE;
            part[SEGMENT_BYTES].fill(0);
        }
        let header_bytes = self.header_bytes as u16;
        part[HEADER_BYTES].copy_from_slice(&header_bytes.to_ne_bytes());
        let ip = &mut part[VNET_HEADER_BYTES..];
        self.repair_ip(ip, segments.start);
        self.repair_tcp(ip, &payload);
        part
    }

    fn repair_ip(&self, ip: &mut [u8], first_segment: u64) {
        let total = ip.len() as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        let identity = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(first_segment as u16);
        ip[4..6].copy_from_slice(&identity.to_be_bytes());
        ip[10..12].fill(0);
        let checksum = !folded(sum(&ip[..self.tcp_at]));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    fn repair_tcp(&self, ip: &mut [u8], payload: &Range<usize>) {
        let addresses = sum(&ip[12..20]);
        let tcp = &mut ip[self.tcp_at..];
        let length = tcp.len() as u32;
        let sequence = tcp[TCP_SEQUENCE].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let sequence = sequence.wrapping_add(payload.start as u32);
        tcp[TCP_SEQUENCE].copy_from_slice(&sequence.to_be_bytes());
        if payload.end != self.payload_bytes {
            tcp[TCP_FLAGS] &= !FIN_AND_PSH;
        }
        if payload.start != 0 {
            tcp[TCP_FLAGS] &= !CWR;
        }
        // The kernel left the sum of the pseudo header here; whoever receives completes it.
        let pseudo = folded(addresses + PROTOCOL_TCP + length);
        tcp[TCP_CHECKSUM].copy_from_slice(&pseudo.to_be_bytes());
    }
}

/// A field of the header before the packet, which is in the machine's byte order.
fn native(packet: &[u8], field: Range<usize>) -> usize {
    usize::from(u16::from_ne_bytes([packet[field.start], packet[field.start + 1]]))
}

/// The sum of 16-bit words as in internet checksums.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | two.get(1).map_or(0, |b| u32::from(*b)))
        .sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: usize = 100;

    /// A TCP packet of `payload` bytes, to be cut into segments of 100.
    fn packet(payload: usize) -> Vec<u8> {
        let mut packet = vec![0; VNET_HEADER_BYTES];
        packet[GSO_TYPE] = GSO_TCP4;
        packet[SEGMENT_BYTES].copy_from_slice(&(SEGMENT as u16).to_ne_bytes());
        packet[CHECKSUM_START].copy_from_slice(&20u16.to_ne_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend((40 + payload as u16).to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ip.extend([0, 1, 0, 2, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0, 5 << 4, 0x19, 1, 0, 0, 0, 0, 0]);
        ip.extend((0..payload).map(|at| at as u8));
        packet.extend(ip);
        packet
    }

    #[test]
    fn the_parts_are_the_whole() {
        for payload in [1, 99, 100, 101, 950] {
            let packet = packet(payload);
            let shape = Shape::of(&packet);
            let count = shape.segments();
            assert_eq!(count as usize, payload.div_ceil(SEGMENT));
            assert_eq!(shape.wire_bytes(0..count), count * 40 + payload as u64);
            let parts = (0..count).map(|segment| shape.cut(&packet, segment..segment + 1));
            let bytes: Vec<u8> =
                parts.flat_map(|part| part[VNET_HEADER_BYTES + 40..].to_vec()).collect();
            assert_eq!(bytes, packet[VNET_HEADER_BYTES + 40..]);
        }
    }

    #[test]
    fn a_part_has_its_own_lengths_sequence_flags_and_checksum() {
        let packet = packet(950);
        let part = Shape::of(&packet).cut(&packet, 1..3);
        let ip = &part[VNET_HEADER_BYTES..];
        assert_eq!(part[GSO_TYPE], GSO_TCP4);
        assert_eq!(ip.len(), 240);
        assert_eq!(ip[2..4], 240u16.to_be_bytes());
        assert_eq!(folded(sum(&ip[..20])), 0xffff, "the sum over an IP header with its checksum");
        assert_eq!(ip[24..28], 98u32.to_be_bytes(), "the sequence number wraps");
        assert_eq!(ip[33], 0x10, "only the last segment has PSH and FIN");
        let single = Shape::of(&packet).cut(&packet, 9..10);
        assert_eq!(single[GSO_TYPE], GSO_NONE);
        assert_eq!(single[VNET_HEADER_BYTES + 33], 0x19);
    }

    #[test]
    fn what_is_one_segment_stays_as_it_is() {
        let mut datagram = packet(300);
        datagram[GSO_TYPE] = GSO_NONE;
        let shape = Shape::of(&datagram);
        assert_eq!((shape.segments(), shape.wire_bytes(0..1)), (1, 340));
        assert_eq!(shape.cut(&datagram, 0..1), datagram);
    }
}
