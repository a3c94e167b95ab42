//! Stream sessions between two real shards: socket pairs stand for the VMMs.

mod before;
pub(crate) mod harness;
mod held;
mod pages;
mod qemu;

use crate::pair::Cuts;
use dwcp_dataplane::port::{ChannelEnd, Command, Event, SessionEnd};
use dwcp_dataplane::stats::SessionCounter;
use dwcp_proto::wire::limits::WINDOW_BYTES_FLOOR;
use harness::{Carry, Options, bytes};
use std::io::{Read, Write};
use std::net::Shutdown;

const BOUND: u64 = 1 << 20;

#[test]
fn bytes_go_both_ways_and_the_digests_are_equal() {
    let mut carry = Carry::new(Options { streams: 3, ..Options::default() });
    let (near, far) = carry.channel(0);
    for seed in 1..6 {
        let sent = bytes(seed, 3_000_000);
        carry.move_bytes(&near, &far, &sent);
        let answer = bytes(seed + 100, 100_000);
        carry.move_bytes(&far, &near, &answer);
    }
    carry.assert_same_digest();
    carry.end_of_input(0, near, far);
    let source = carry.source_counters();
    let sink = carry.sink_counters();
    let of = |counters: &[u64], counter: SessionCounter| counters[counter.index()];
    assert_eq!(of(&source, SessionCounter::VmmInBytes), 15_000_000);
    assert_eq!(of(&sink, SessionCounter::VmmOutBytes), 15_000_000);
    assert_eq!(of(&source, SessionCounter::OpaqueBytes), 15_000_000);
    assert_eq!(of(&source, SessionCounter::CodedBytes), 15_000_000);
    assert_eq!(of(&sink, SessionCounter::ReplyBytes), 500_000);
    assert_eq!(of(&source, SessionCounter::ReplyBytes), 500_000);
    assert!(of(&source, SessionCounter::RttMinNanos) > 0);
    carry.close();
}

#[test]
fn the_rate_of_delivery_becomes_known() {
    let mut carry = Carry::new(Options::default());
    let (near, far) = carry.channel(0);
    carry.until(|carry| {
        carry.move_bytes(&near, &far, &bytes(1, 1_000_000));
        carry.source_counters()[SessionCounter::DeliveryRate.index()] > 0
    });
    carry.close();
}

#[test]
fn a_vmm_that_does_not_read_holds_the_source_back() {
    let mut carry = Carry::new(Options { undelivered: BOUND, ..Options::default() });
    let (near, far) = carry.channel(0);
    let sent = bytes(7, 16 << 20);
    near.set_nonblocking(true).unwrap();
    let mut at = 0;
    carry.until(|carry| {
        // What is under way: both socket buffers of each VMM, and what the session allows.
        while at < sent.len() {
            match (&near).write(&sent[at..]) {
                Ok(written) => at += written,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        let counters = carry.source_counters();
        let undelivered = counters[SessionCounter::UndeliveredBytes.index()];
        assert!(undelivered <= BOUND + (256 << 10), "{undelivered} bytes are undelivered");
        // Stuck: the window is full and nothing moved for a while of looking.
        carry.is_quiet(at as u64)
    });
    assert!(at < 4 << 20, "{at} bytes were taken from a VMM whose peer reads nothing");
    near.set_nonblocking(false).unwrap();
    carry.move_rest(&near, &far, &sent, at);
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn a_stream_that_dies_loses_nothing_and_keeps_the_order() {
    for seed in 1..4 {
        eprintln!("seed {seed}");
        let mut carry = Carry::new(Options { streams: 4, ..Options::default() });
        let (near, far) = carry.channel(0);
        let sent = bytes(seed, 24 << 20);
        carry.move_bytes_while(&near, &far, &sent, |carry, moved| {
            // One stream after the other dies, all but the last.
            for index in 0..3 {
                if moved > (index + 1) * (4 << 20) {
                    carry.cut_stream(index);
                }
            }
        });
        carry.move_bytes(&far, &near, &bytes(seed, 50_000));
        carry.assert_same_digest();
        carry.close();
    }
}

#[test]
fn a_session_without_streams_waits_and_goes_on_over_others() {
    let mut carry = Carry::new(Options { streams: 3, undelivered: BOUND, ..Options::default() });
    let (near, far) = carry.channel(0);
    for (seed, cuts) in (1..).zip([Cuts::Network, Cuts::Source, Cuts::Sink]) {
        eprintln!("{cuts:?}");
        let sent = bytes(seed, 16 << 20);
        let vmm_in = |carry: &Carry| carry.source_counters()[SessionCounter::VmmInBytes.index()];
        let before = vmm_in(&carry);
        std::thread::scope(|scope| {
            scope.spawn(|| { &near }.write_all(&sent).unwrap());
            // Nobody reads it yet, so that it is under way when the streams end: a window's worth
            // at the most, which may be as little as a record after what was slow before.
            carry.until(|carry| vmm_in(carry) >= before + WINDOW_BYTES_FLOOR / 2);
            carry.pair.renew_streams(cuts);
            let mut got = vec![0; sent.len()];
            { &far }.read_exact(&mut got).unwrap();
            assert!(got == sent, "what arrives is what was written");
        });
    }
    assert!(carry.source_counters()[SessionCounter::FramesResent.index()] > 0);
    carry.move_bytes(&far, &near, &bytes(9, 50_000));
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn replies_outlive_every_stream() {
    let mut carry = Carry::new(Options { streams: 2, ..Options::default() });
    let (near, far) = carry.channel(0);
    let answer = bytes(8, 4 << 20);
    let mut cuts = [Cuts::Source, Cuts::Sink, Cuts::Network].into_iter().zip(1..).peekable();
    carry.move_bytes_while(&far, &near, &answer, |carry, moved| {
        if let Some((cuts, _)) = cuts.next_if(|(_, index)| moved > index * (1 << 20)) {
            carry.pair.renew_streams(cuts);
        }
    });
    carry.move_bytes(&near, &far, &bytes(9, 100_000));
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn a_vmm_without_a_link_is_held_back_and_loses_nothing() {
    let mut carry = Carry::new(Options { undelivered: BOUND, ..Options::default() });
    let (near, far) = carry.channel(0);
    let streams = carry.pair.cut_all(Cuts::Source);
    let sent = bytes(17, 4 << 20);
    near.set_nonblocking(true).unwrap();
    let mut at = 0;
    carry.until(|carry| {
        while let Ok(written) = (&near).write(&sent[at..]) {
            at += written;
        }
        carry.is_quiet(at as u64)
    });
    assert_eq!(carry.source_counters()[SessionCounter::VmmInBytes.index()], 0, "nobody reads it");
    near.set_nonblocking(false).unwrap();
    carry.pair.next_streams(streams);
    carry.move_rest(&near, &far, &sent, at);
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn the_dropped_link_takes_the_session_and_its_sockets_with_it() {
    let mut carry = Carry::new(Options::default());
    let (mut near, mut far) = carry.channel(0);
    let link = carry.pair.session.link;
    carry.cut_stream(0);
    for side in [&mut carry.pair.source, &mut carry.pair.sink] {
        side.event(|event| matches!(event, Event::StreamDown { .. }).then_some(()));
        side.command(Command::DropLink { link });
    }
    for side in [&mut carry.pair.source, &mut carry.pair.sink] {
        let cause = side.event(|event| match event {
            Event::Failed { cause, .. } => Some(cause),
            _ => None,
        });
        assert!(matches!(cause, SessionEnd::LinkLost(_)), "{cause}");
    }
    assert_eq!(near.read(&mut [0; 8]).unwrap(), 0, "the source's VMM sees it");
    assert_eq!(far.read(&mut [0; 8]).unwrap(), 0, "and the sink's");
    carry.close();
}

#[test]
fn a_blocked_channel_stops_no_other() {
    let mut carry = Carry::new(Options { streams: 2, undelivered: BOUND, ..Options::default() });
    let channels: Vec<_> = (0..3).map(|number| carry.channel(number)).collect();
    let (blocked, _unread) = &channels[1];
    blocked.set_nonblocking(true).unwrap();
    let flood = bytes(1, 8 << 20);
    let mut at = 0;
    carry.until(|carry| {
        while let Ok(written) = (&*blocked).write(&flood[at..]) {
            at += written;
        }
        carry.is_quiet(at as u64)
    });
    for (number, (near, far)) in channels.iter().enumerate().filter(|(number, _)| *number != 1) {
        carry.move_bytes(near, far, &bytes(number as u64, 6 << 20));
    }
    carry.close();
}

#[test]
fn the_end_of_the_sinks_vmm_is_told_at_both_ends() {
    let mut carry = Carry::new(Options::default());
    let (near, far) = carry.channel(0);
    carry.move_bytes(&near, &far, &bytes(3, 10_000));
    drop(far);
    assert_eq!(carry.sink_channel_end(), (0, ChannelEnd::Closed));
    assert_eq!(carry.source_channel_end(), (0, ChannelEnd::Peer));
    assert_eq!((&near).read(&mut [0; 8]).unwrap(), 0, "the replies have ended");
    carry.close();
}

#[test]
fn garbage_and_half_closed_sockets_are_carried_as_they_are() {
    let mut carry = Carry::new(Options::default());
    let (near, far) = carry.channel(0);
    let sent = bytes(9, 77_777);
    (&near).write_all(&sent).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    (&far).read_to_end(&mut got).unwrap();
    assert!(got == sent);
    assert_eq!(carry.source_channel_end(), (0, ChannelEnd::Closed));
    assert_eq!(carry.sink_channel_end(), (0, ChannelEnd::Peer));
    // The way back is still open.
    carry.move_bytes(&far, &near, b"loaded");
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn parts_wait_at_the_sink_until_the_channel_is_there() {
    let mut carry = Carry::new(Options::default());
    let near = carry.source_channel(0);
    let sent = bytes(4, 300_000);
    (&near).write_all(&sent[..150_000]).unwrap();
    carry.until(|carry| {
        carry.source_counters()[SessionCounter::UndeliveredBytes.index()] == 150_000
            && carry.sink_counters()[SessionCounter::ReorderHighWater.index()] >= 150_000
    });
    let far = carry.sink_channel(0);
    carry.move_rest(&near, &far, &sent, 150_000);
    carry.assert_same_digest();
    carry.close();
}

#[test]
fn closing_gives_everything_back() {
    let mut carry = Carry::new(Options::default());
    // More than the shard has places for sockets, streams and sessions.
    for turn in 0..60 {
        let channels = [carry.channel(0), carry.channel(1)];
        let sent = bytes(turn, 300_000);
        carry.move_bytes(&channels[0].0, &channels[0].1, &sent);
        // Some is under way, and the sockets are watched.
        (&channels[1].0).write_all(&sent[..100_000]).unwrap();
        carry.reopen();
        for (mut near, mut far) in channels {
            assert!(matches!(near.read(&mut [0; 8]), Ok(0) | Err(_)), "turn {turn}");
            assert!(far.read_to_end(&mut Vec::new()).is_ok(), "turn {turn}");
        }
    }
    carry.close();
}

#[test]
fn random_chunks_arrive_in_order_over_many_streams() {
    for seed in [11, 12] {
        eprintln!("seed {seed}");
        let mut carry = Carry::new(Options { streams: 5, ..Options::default() });
        let channels: Vec<_> = (0..4).map(|number| carry.channel(number)).collect();
        std::thread::scope(|scope| {
            for (number, (near, far)) in channels.iter().enumerate() {
                scope.spawn(move || harness::chatter(seed * 10 + number as u64, near, far));
            }
        });
        carry.assert_same_digest();
        carry.close();
    }
}
