//! Streams of QEMU between two real shards: what arrives has the same meaning, and is less.

use super::harness::{self, Carry, Options, bytes};
use super::qemu::{Guest, load};
use crate::pair::Cuts;
use dwcp_dataplane::port::{Event, Level, StreamCoding, StreamNote};
use dwcp_dataplane::stats::SessionCounter;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

pub(crate) fn options(window_log: u8, streams: u16) -> Options {
    let coding = StreamCoding::Pages { level: Level::Auto, window_log };
    Options { streams, undelivered: 2 << 20, coding, ..Options::default() }
}

pub(crate) fn guest(seed: u64) -> Guest {
    let mut guest = Guest::new(seed);
    guest.all();
    for _ in 0..6 {
        guest.round(300);
    }
    guest.finish(80);
    guest
}

/// Writes the stream in chunks of random length and reads all that the sink's VMM gets.
pub(crate) fn carried(
    carry: &mut Carry,
    (near, far): (&UnixStream, &UnixStream),
    stream: &[u8],
    seed: u64,
    mut meanwhile: impl FnMut(&mut Carry),
) -> Vec<u8> {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut state = seed;
            let mut rest = stream;
            while !rest.is_empty() {
                let chunk = 1 + crate::pair::next(&mut state) as usize % 150_000;
                let (part, behind) = rest.split_at(chunk.min(rest.len()));
                { near }.write_all(part).unwrap();
                rest = behind;
            }
            near.shutdown(Shutdown::Write).unwrap();
        });
        let reading = scope.spawn(move || {
            let mut got = Vec::new();
            { far }.read_to_end(&mut got).unwrap();
            got
        });
        while !reading.is_finished() {
            meanwhile(carry);
            std::thread::yield_now();
        }
        reading.join().unwrap()
    })
}

fn note(carry: &mut Carry) -> StreamNote {
    carry.pair.source.event(|event| match event {
        Event::Stream { note, .. } => Some(note),
        Event::Failed { cause, .. } => panic!("the session failed: {cause}"),
        _ => None,
    })
}

#[test]
fn the_sinks_vmm_gets_a_stream_of_the_same_meaning() {
    for (seed, window_log) in [(1, 0), (2, 20), (3, 17)] {
        eprintln!("seed {seed}");
        let mut carry = Carry::new(options(window_log, 2));
        let (near, far) = carry.channel(0);
        let guest = guest(seed);
        let got = carried(&mut carry, (&near, &far), &guest.stream, seed, |_| ());
        assert!(load(&got) == load(&guest.stream), "another stream arrived");
        carry.assert_same_digest();
        assert_eq!(note(&mut carry), StreamNote::RamBytes(640 * 4096));
        assert_eq!(note(&mut carry), StreamNote::RamEnded);
        let (source, sink) = (carry.source_counters(), carry.sink_counters());
        let classes = [
            SessionCounter::PagesZero,
            SessionCounter::PagesDelta,
            SessionCounter::PagesZstd,
            SessionCounter::PagesRaw,
        ];
        for class in classes {
            assert!(source[class.index()] > 0, "{class:?}");
            assert_eq!(source[class.index()], sink[class.index()], "{class:?}");
        }
        let of = |counter: SessionCounter| source[counter.index()];
        assert!(of(SessionCounter::PagesUnchanged) > 0);
        assert_eq!(of(SessionCounter::VmmInBytes), guest.stream_bytes());
        assert!(of(SessionCounter::OpaqueBytes) < 125_000, "device state and little else");
        assert!(of(SessionCounter::CodedBytes) < guest.stream_bytes() / 2);
        assert!(of(SessionCounter::BasePages) > 0);
        carry.close();
    }
}

#[test]
fn dying_streams_need_no_recoding() {
    for seed in [21, 22] {
        eprintln!("seed {seed}");
        let mut carry = Carry::new(options(18, 3));
        let (near, far) = carry.channel(0);
        let guest = guest(seed);
        let got = carried(&mut carry, (&near, &far), &guest.stream, seed, |carry| {
            let frames = carry.source_counters()[SessionCounter::Frames.index()];
            for index in 0..2 {
                if frames > (index as u64 + 1) * 15 {
                    carry.cut_stream(index);
                }
            }
        });
        assert!(load(&got) == load(&guest.stream), "another stream arrived");
        carry.assert_same_digest();
        carry.close();
    }
}

#[test]
fn a_lost_link_needs_no_recoding() {
    for seed in [23, 24, 25] {
        eprintln!("seed {seed}");
        let mut carry = Carry::new(options(18, 2));
        let (near, far) = carry.channel(0);
        let guest = guest(seed);
        let mut cuts = [Cuts::Network, Cuts::Sink, Cuts::Source].into_iter().zip(1..).peekable();
        let got = carried(&mut carry, (&near, &far), &guest.stream, seed, |carry| {
            let frames = carry.source_counters()[SessionCounter::Frames.index()];
            if let Some((cuts, _)) = cuts.next_if(|(_, index)| frames > index * 12) {
                carry.pair.renew_streams(cuts);
            }
        });
        assert!(load(&got) == load(&guest.stream), "another stream arrived");
        carry.assert_same_digest();
        carry.close();
    }
}

#[test]
fn what_is_not_known_is_carried_as_it_is_from_there_on() {
    let mut carry = Carry::new(options(0, 1));
    let (near, far) = carry.channel(0);
    let mut guest = Guest::new(31);
    guest.all();
    guest.begin(2);
    // Pages that the sink has, of another block than the one before: left out, they would leave
    // the reference of the unknown word dangling.
    guest.record(0, 1);
    guest.record(0, 2);
    guest.xbzrle(3);
    guest.round(50);
    let got = carried(&mut carry, (&near, &far), &guest.stream, 31, |_| ());
    assert!(load(&got) == load(&guest.stream), "another stream arrived");
    assert!(matches!(note(&mut carry), StreamNote::RamBytes(_)));
    assert_eq!(note(&mut carry), StreamNote::Opaque("qemu-xbzrle"));
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn a_second_channel_makes_the_stream_opaque() {
    let mut carry = Carry::new(options(0, 1));
    let (near, far) = carry.channel(0);
    let mut guest = Guest::new(32);
    guest.all();
    let first = guest.stream.len();
    { &near }.write_all(&guest.stream).unwrap();
    carry
        .until(|carry| carry.source_counters()[SessionCounter::VmmInBytes.index()] == first as u64);
    let second = carry.channel(1);
    guest.round(100);
    let sent = bytes(5, 200_000);
    carry.move_bytes(&second.0, &second.1, &sent);
    let rest = guest.stream.split_off(first);
    let got = carried(&mut carry, (&near, &far), &rest, 32, |_| ());
    guest.stream.extend(&rest);
    assert!(load(&got) == load(&guest.stream), "another stream arrived");
    assert!(got.ends_with(&rest), "the second round is as it was");
    assert!(matches!(note(&mut carry), StreamNote::RamBytes(_)));
    assert_eq!(note(&mut carry), StreamNote::Opaque("qemu-multifd"));
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn garbage_is_carried_as_it_is() {
    let mut carry = Carry::new(options(15, 2));
    let (near, far) = carry.channel(0);
    let sent = bytes(6, 3_000_000);
    let got = carried(&mut carry, (&near, &far), &sent, 33, |_| ());
    assert!(got == sent);
    assert_eq!(note(&mut carry), StreamNote::Opaque("qemu-not-a-stream"));
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn a_stream_that_breaks_off_anywhere_arrives_up_to_there() {
    let guest = guest(41);
    let mut state = 41;
    for _ in 0..6 {
        let cut = crate::pair::next(&mut state) as usize % guest.stream.len();
        eprintln!("cut at {cut}");
        let mut carry = Carry::new(options(16, 1));
        let (near, far) = carry.channel(0);
        let got = carried(&mut carry, (&near, &far), &guest.stream[..cut], 41, |_| ());
        assert!(load(&got) == load(&guest.stream[..cut]), "another stream arrived");
        carry.assert_same_digest();
        carry.close();
    }
}

#[test]
fn a_vmm_that_reads_slowly_gets_all_of_it() {
    let mut carry = Carry::new(options(18, 2));
    let (near, far) = carry.channel(0);
    let guest = guest(51);
    let got = std::thread::scope(|scope| {
        scope.spawn(|| { &near }.write_all(&guest.stream).unwrap());
        let reading = scope.spawn(|| harness::sip(&far, guest.stream.len()));
        near_end(&mut carry, &guest, &near);
        reading.join().unwrap()
    });
    assert!(load(&got) == load(&guest.stream), "another stream arrived");
    carry.assert_same_digest();
    carry.close();
}

/// Waits until all was taken from the VMM, looking at the bound meanwhile, and ends the input.
fn near_end(carry: &mut Carry, guest: &Guest, near: &UnixStream) {
    carry.until(|carry| {
        let counters = carry.source_counters();
        let undelivered = counters[SessionCounter::UndeliveredBytes.index()];
        assert!(undelivered <= (2 << 20) + (260 << 10), "{undelivered} bytes are undelivered");
        counters[SessionCounter::VmmInBytes.index()] == guest.stream_bytes()
    });
    near.shutdown(Shutdown::Write).unwrap();
}
